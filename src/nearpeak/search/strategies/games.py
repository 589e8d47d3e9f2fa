"""Combinatorial Bayesian optimization as a game: one player a parameter, who all want the same bound to be large.

Of a space of d parameters with K values each, K^d configurations cannot be scored. Let parameter i be a player whose
strategies are its values, and let all players be paid what the upper confidence bound promises for the configuration
that they make together (values are minimised):

    u(a_1, ..., a_d) = sqrt(beta) sd(a) - mean(a)

It is a potential game, so play ends: by best responses (each player in turn takes the value that pays most, the others
held; d K evaluations of the bound a pass), or by no-regret play (all at once draw a value with probability
``exp(rate * what it would have paid so far)``, Hedge; the most likely joint strategy then ends by best responses). The
end is a pure Nash equilibrium: no single parameter can be changed and raise the bound. Games from several starts end at
several equilibria; the best of those that are distinct and new are the next batch. Where they are fewer than the batch,
games go on with the bound that would hold if those chosen had given their means.

Bal, Sessa, Mutny, Krause: Optimistic Games for Combinatorial Bayesian Optimization with Application to Protein Design,
ICLR 2025.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import confidence_bound
from nearpeak.search.bayesian import Surrogate, believed, opening
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats, Ordinal
from nearpeak.search.populations.local_search import LocalSearch
from nearpeak.search.populations.steady_state import Genetic
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.study import run
from nearpeak.search.surrogates.additive import additive_surrogate
from nearpeak.search.surrogates.gp import Posterior
from nearpeak.topic import Explanation, Option, Table, Topic

Strategies = NDArray[np.intp]
"""A value's number for each player, ``[n, players]``."""
Payoff = Callable[[Strategies], Floats]
"""What joint strategies pay every player, ``[n]``; minus infinity where the space does not allow them."""

_BITS: Final = (2, 3, 4, 8)


def best_responses(payoff: Payoff, counts: NDArray[np.intp], start: Strategies, rng: np.random.Generator) -> Strategies:
    """Games ``[n, players]`` played from their starts to equilibria, all players in turn in a fresh order each pass.

    Args:
        counts: strategies of each player, ``[players]``.
    """
    joint, paid, playing = start.copy(), payoff(start), np.arange(len(start))
    while len(playing):
        before = joint[playing]
        for player in rng.permutation(len(counts)):
            replies = np.repeat(joint[playing], counts[player], axis=0)
            replies[:, player] = np.tile(np.arange(counts[player]), len(playing))
            pays = payoff(replies).reshape(len(playing), -1)
            best = pays.argmax(axis=1)
            most, now = pays[np.arange(len(playing)), best], paid[playing]
            better = most > now + _tolerance(now)
            joint[playing[better], player], paid[playing[better]] = best[better], most[better]
        playing = playing[(joint[playing] != before).any(axis=1)]
    return joint


def no_regret(
    payoff: Payoff, counts: NDArray[np.intp], start: Strategies, rng: np.random.Generator, rounds: int = 30
) -> Strategies:
    """Games ``[n, players]`` played by Hedge for some rounds, the likeliest joint strategies then to equilibria."""
    n, players, most = *start.shape, int(counts.max())
    exists = np.arange(most) < counts[:, None]
    who, what = np.nonzero(exists)
    rate = np.sqrt(8 * np.log(max(most, 2)) / rounds)
    gathered = np.where(exists, 0.0, -np.inf) + np.zeros((n, 1, 1))
    joint = start
    for _ in range(rounds):
        replies = np.repeat(joint[:, None], len(who), axis=1)
        replies[:, np.arange(len(who)), who] = what
        pays = payoff(replies.reshape(-1, players)).reshape(n, -1)
        known = np.isfinite(pays)
        low = np.where(known.any(axis=1), pays.min(axis=1, initial=np.inf, where=known), 0.0)[:, None]
        share = np.maximum(pays - low, 0.0)
        gathered[:, who, what] += rate * share / np.maximum(share.max(axis=1, keepdims=True), 1e-300)
        joint = (gathered + rng.gumbel(size=gathered.shape)).argmax(axis=2)
    likeliest = gathered.argmax(axis=2)
    allowed = np.isfinite(payoff(likeliest))
    return best_responses(payoff, counts, np.where(allowed[:, None], likeliest, start), rng)


PLAYS: Final = {"best-response": best_responses, "no-regret": no_regret}
"""Ways to play, by name."""


def gains(payoff: Payoff, counts: NDArray[np.intp], joint: Strategies) -> Floats:
    """What the player who gains most from leaving its strategy alone would gain, ``[n]``: 0 at an equilibrium."""
    found, paid = np.zeros(len(joint)), payoff(joint)
    for player, count in enumerate(counts):
        for value in range(count):
            other = joint.copy()
            other[:, player] = value
            found = np.maximum(found, payoff(other) - paid)
    return found


@dataclass(frozen=True)
class Players:
    """A space as a game.

    Attributes:
        space: every parameter of which has levels.
    """

    space: Space

    def __post_init__(self) -> None:
        if endless := [name for name, p in self.space.parameters.items() if p.levels is None]:
            raise UsageError(
                f"a player chooses among listed values, and {', '.join(endless)} has none: write it as an Ordinal, "
                "or use --method bayes"
            )

    @cached_property
    def counts(self) -> NDArray[np.intp]:
        """Strategies of each player, ``[players]``."""
        return np.asarray([p.levels for p in self.space.parameters.values()], dtype=np.intp)

    @cached_property
    def _first(self) -> Floats:
        return np.asarray([p.at(np.zeros(1, dtype=np.intp))[0, 0] for p in self.space.parameters.values()])

    def points(self, joint: Strategies) -> Floats:
        """The configurations that joint strategies make, ``[n, width]``."""
        return self.space.activated(joint + self._first)

    def strategies(self, points: Floats) -> Strategies:
        """Joint strategies that make these configurations; a player who is inactive takes its first."""
        return np.nan_to_num(np.rint(points - self._first)).astype(np.intp)

    def features(self, joint: Strategies) -> Floats:
        """What surrogates see of joint strategies, ``[n, f]``."""
        if self.space.conditions:
            return self.space.encode(self.points(joint))
        return np.hstack([seen[chosen] for seen, chosen in zip(self._seen, joint.T, strict=True)])

    @cached_property
    def _seen(self) -> list[Floats]:
        """Features of every value of each player."""
        return [p.features(p.at(np.arange(p.levels or 0))) for p in self.space.parameters.values()]

    def payoff(self, posterior: Posterior, beta: float, barred: Floats | None = None) -> Payoff:
        """The upper confidence bound of a posterior; the configurations ``barred [b, width]`` are not allowed."""
        closed = None if barred is None else _keys(barred)
        limited = bool(self.space.constraints) or self.space.listed is not None

        def pay(joint: Strategies) -> Floats:
            score = confidence_bound(posterior, self.features(joint), 0.0, beta)
            if not limited and closed is None:
                return score
            points = self.points(joint)
            allowed = self.space.holds(points) if limited else np.ones(len(points), dtype=bool)
            if closed is not None:
                allowed &= ~np.isin(_keys(points), closed)
            return np.where(allowed, score, -np.inf)

        return pay


@dataclass(frozen=True)
class CombinatorialGames:
    """Batches of distinct equilibria of the bound; for spaces of listed values, however many configurations they have.

    Attributes:
        play: of ``PLAYS``. beta: how optimistic the bound is. games: starts; half of them are draws of the space, half
            changes of the best configurations seen. surrogate: what the bound is of. initial: evaluations before it.
    """

    play: str = "best-response"
    beta: float = 4.0
    games: int = 32
    surrogate: Surrogate = additive_surrogate
    initial: int = 10

    def __post_init__(self) -> None:
        if self.play not in PLAYS:
            raise UnknownName("way to play", self.play, PLAYS)
        if self.games < 1 or not self.beta > 0:
            raise UsageError(f"play at least one game with a positive beta, not {self.games} with {self.beta}")

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``.

        Raises:
            UsageError: a parameter has no levels.
        """
        players = Players(space)
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        found = np.empty((0, space.width))
        while len(found) < count:
            now = history.waiting_for(found)
            known = believed(space, now, self.surrogate, rng) if len(now.pending) else now
            posterior = self.surrogate(space, known, rng)
            seen = np.vstack([now.points, now.pending])
            more = self.equilibria(players, players.payoff(posterior, self.beta), known, rng)
            more = more[~np.isin(_keys(more), _keys(seen))]
            if len(more) == 0:  # every equilibrium was seen: what was seen is no longer allowed
                more = self.equilibria(players, players.payoff(posterior, self.beta, seen), known, rng)
            if len(more) == 0:
                return np.vstack([found, RandomSearch().propose(space, now, count - len(found), rng)])
            found = np.vstack([found, more[: count - len(found)]])
        return found

    def equilibria(self, players: Players, payoff: Payoff, history: History, rng: np.random.Generator) -> Floats:
        """Distinct configurations at which games end, those of the largest payoff first, ``[k, width]``."""
        starts = players.strategies(self.starts(players.space, history, rng))
        starts = starts[np.isfinite(payoff(starts))]
        if len(starts) == 0:
            return np.empty((0, players.space.width))
        joint = PLAYS[self.play](payoff, players.counts, starts, rng)
        joint = joint[np.argsort(-payoff(joint), kind="stable")]
        points = players.points(joint)
        return points[np.sort(np.unique(_keys(points), return_index=True)[1])]

    def starts(self, space: Space, history: History, rng: np.random.Generator) -> Floats:
        """Where games start, ``[games, width]``."""
        drawn = space.sample(self.games, rng)
        order = history.ranking
        near = history.points[np.resize(order[: max(self.games // 4, 1)], self.games // 2)]
        return np.vstack([space.moved(near, rng), drawn])[: self.games]


def _tolerance(paid: Floats) -> Floats:
    """Differences below this are rounding: play must end."""
    return 1e-9 * (1 + np.abs(np.where(np.isfinite(paid), paid, 0.0)))


def _keys(points: Floats) -> NDArray[np.void]:
    """Rows as single values that compare by their bytes, ``[n]``; NaN is alike NaN."""
    rows = np.ascontiguousarray(np.where(np.isnan(points), -1e300, points + 0.0))
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()


@dataclass(frozen=True)
class BitWidths:
    """What quantizing a model costs, in a model of it: errors of the layers, their pairs, and the bits.

    With the error ``e_i = sensitivity_i * 4^-bits_i`` of each layer, the value is

        sum_i e_i + sum_ij pairs_ij sqrt(e_i e_j) + price * mean_i bits_i

    Attributes:
        sensitivity: ``[layers]``. pairs: symmetric, ``[layers, layers]``; negative where errors cancel.
        price: of a bit.
    """

    sensitivity: Floats
    pairs: Floats
    price: float = 0.1

    @classmethod
    def drawn(cls, layers: int, seed: int) -> "BitWidths":
        """Log-normal sensitivities; every layer tied to about three others."""
        rng = np.random.default_rng([seed, 64])
        tied = np.triu(rng.random((layers, layers)) < 3 / max(layers, 3), 1) * rng.normal(0, 0.5, (layers, layers))
        return cls(4 * np.exp(rng.standard_normal(layers)) / layers, tied + tied.T)

    @property
    def space(self) -> Space:
        """2, 3, 4 or 8 bits a layer."""
        return Space({f"layer{i}": Ordinal(_BITS) for i in range(len(self.sensitivity))})

    def __call__(self, points: Floats) -> Floats:
        """Values of configurations ``[n, layers]``, ``[n]``."""
        bits = np.asarray(_BITS)[points.astype(np.intp)]
        error = self.sensitivity * 4.0 ** (2 - bits)
        root = np.sqrt(error)
        return np.asarray(
            error.sum(axis=1) + 0.5 * np.einsum("ni,ij,nj->n", root, self.pairs, root) + self.price * bits.mean(axis=1)
        )


def _explain(layers: int, evaluations: int, batch: int, seeds: int, play: str) -> Explanation:
    if layers < 2 or seeds < 1 or batch < 1 or evaluations <= 2 * layers + 2:
        raise UsageError(
            f"take at least 2 layers, a batch and a seed of 1, and more than 2 layers + 2 evaluations, not {layers}, "
            f"{batch}, {seeds} and {evaluations}"
        )
    methods: dict[str, Method] = {
        "games": CombinatorialGames(play),
        "genetic": Genetic(),
        "hill climb": LocalSearch(initial=1),
        "random": RandomSearch(),
    }
    best = np.empty((len(methods), seeds))
    for seed in range(seeds):
        problem = BitWidths.drawn(layers, seed)
        for i, method in enumerate(methods.values()):
            best[i, seed] = run(method, problem, problem.space, evaluations, seed, batch).values.min()
    means = best.mean(axis=1)
    names = list(methods)
    return Explanation(
        {"configurations": float(len(_BITS)) ** layers, "mean_of_games": float(means[0])},
        (
            Table.of(
                f"Best value after {evaluations} evaluations",
                method=names,
                mean=means,
                standard_error=best.std(axis=1) / np.sqrt(seeds),
                wins=(best == best.min(axis=0)).sum(axis=1),
            ),
        ),
        (
            f"Of {float(len(_BITS)) ** layers:.2g} configurations, {evaluations} evaluations led "
            f"{names[int(means.argmin())]} to the lowest mean, {means.min():.4g} over {seeds} models.",
        ),
    )


TOPIC = Topic(
    "games",
    "Which bit width for every layer, where there are too many combinations to score?",
    "Bal et al., Optimistic Games for Combinatorial Bayesian Optimization with Application to Protein Design, "
    "ICLR 2025",
    (
        Option("layers", int, "Layers, each with 2, 3, 4 or 8 bits.", 24),
        Option("evaluations", int, "Of each search.", 80),
        Option("batch", int, "Evaluations that start together.", 5),
        Option("seeds", int, "Models that are drawn, each searched once.", 3),
        Option("play", str, "best-response or no-regret.", "best-response"),
    ),
    _explain,
    "--layers 12 --evaluations 60 --seeds 2",
)
