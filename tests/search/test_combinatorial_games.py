"""Combinatorial games: play ends at equilibria, proposals are equilibria of the bound, and they find low values."""

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.bayesian import believed
from nearpeak.search.history import History
from nearpeak.search.populations.local_search import LocalSearch
from nearpeak.search.populations.steady_state import Genetic
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Categorical, Float, Integer, Ordinal, Space
from nearpeak.search.strategies.games import (
    TOPIC,
    BitWidths,
    CombinatorialGames,
    Players,
    best_responses,
    gains,
    no_regret,
)
from nearpeak.search.study import run

PLAYS = {"best-response": best_responses, "no-regret": no_regret}


def _means(problems, evaluations, batch, methods):
    """Mean over seeds of the best value that each method finds, one problem a seed."""
    return {
        name: float(
            np.mean([run(m, p, p.space, evaluations, seed, batch).values.min() for seed, p in enumerate(problems)])
        )
        for name, m in methods.items()
    }


@pytest.mark.parametrize("play", PLAYS)
def test_play_ends_where_no_player_gains_from_a_change_of_its_own(play):
    rng = np.random.default_rng(0)
    counts = np.asarray([3, 2, 4, 3])
    table = rng.standard_normal(counts)
    table[rng.random(counts) < 0.2] = -np.inf
    start = np.argwhere(np.isfinite(table))
    end = PLAYS[play](lambda joint: table[tuple(joint.T)], counts, start, rng)
    paid = table[tuple(end.T)]
    for player, count in enumerate(counts):
        for value in range(count):
            other = end.copy()
            other[:, player] = value
            assert (table[tuple(other.T)] <= paid + 1e-8).all()
    assert (paid > table[tuple(start.T)] - 1e-8).all() or play == "no-regret"
    assert len(np.unique(end, axis=0)) < len(start)
    assert (gains(lambda joint: table[tuple(joint.T)], counts, start) > 0).any(), (
        "the check itself must be able to fail"
    )


@pytest.mark.parametrize("play", PLAYS)
def test_no_proposal_has_a_single_change_that_raises_the_bound(play):
    problem = BitWidths.drawn(24, seed=3)
    space = problem.space
    points = space.sample(30, np.random.default_rng(3))
    history = History.of(points, problem(points))
    method = CombinatorialGames(play, games=12 if play == "best-response" else 3)
    players, rng = Players(space), np.random.default_rng(0)
    payoff = players.payoff(method.surrogate(space, history, rng), method.beta)
    assert gains(payoff, players.counts, players.strategies(points)).max() > 1e-2
    proposed = method.propose(space, history, 3, np.random.default_rng(4))
    assert gains(payoff, players.counts, players.strategies(proposed[:1])).max() < 1e-6
    bounds = [payoff]
    for i in (1, 2):  # an equilibrium of the first bound, or of that after the means of those before
        known = believed(space, history.waiting_for(proposed[:i]), method.surrogate, rng)
        bounds.append(players.payoff(method.surrogate(space, known, rng), method.beta))
        joint = players.strategies(proposed[[i]])
        assert min(gains(bound, players.counts, joint)[0] for bound in bounds) < 1e-6
    assert len(np.unique(proposed, axis=0)) == 3
    assert space.holds(proposed).all()
    again = CombinatorialGames(play, method.beta, method.games).propose(space, history, 3, np.random.default_rng(4))
    assert (again == proposed).all()


def test_constraints_conditions_and_what_was_seen_are_respected():
    space = Space(
        {
            "a": Integer(1, 6),
            "b": Ordinal((1, 2, 4)),
            "fast": Categorical((False, True)),
            "c": Categorical(("x", "y", "z")),
        },
        constraints=("a * b <= 12",),
        conditions={"c": "fast"},
    )
    cost = lambda rows: (rows[:, 0] - 3) ** 2 + rows[:, 1] + np.nan_to_num(rows[:, 3], nan=1.0)  # noqa: E731
    history = run(CombinatorialGames(initial=6), cost, space, 30, 0, batch=4)
    assert space.holds(history.points).all()
    keys = np.nan_to_num(history.points, nan=-1)
    assert len(np.unique(keys, axis=0)) == 30
    assert history.values.min() == cost(space.grid.points).min()


def test_when_all_is_seen_there_is_nothing_more_and_floats_are_refused():
    space = Space({"a": Integer(0, 3), "b": Integer(0, 3)})
    history = run(CombinatorialGames(initial=4), lambda rows: rows.sum(axis=1), space, 15, 0, batch=3)
    assert len(CombinatorialGames(initial=4).propose(space, history, 4, np.random.default_rng(0))) == 1
    with pytest.raises(UsageError, match="Ordinal"):
        CombinatorialGames().propose(Space({"x": Float(0, 1)}), History.empty(1), 1, np.random.default_rng(0))
    with pytest.raises(UsageError, match="tit-for-tat"):
        CombinatorialGames("tit-for-tat")


def test_games_find_lower_values_than_random_and_genetic_search():
    problems = [BitWidths.drawn(16, seed) for seed in range(3)]
    methods = {"games": CombinatorialGames(games=16), "genetic": Genetic(), "random": RandomSearch()}
    means = _means(problems, 45, 7, methods)
    assert means["games"] < min(means["genetic"], means["random"]), means


def test_topic_compares_the_methods():
    found = TOPIC.explain(layers=6, evaluations=20, batch=6, seeds=1, play="best-response")
    assert {row["method"] for row in found.tables[0].rows} == {"games", "genetic", "hill climb", "random"}
    with pytest.raises(UsageError):
        TOPIC.explain(layers=1, evaluations=20, batch=6, seeds=1, play="best-response")


@pytest.mark.slow
def test_games_find_the_lowest_mean_of_24_layers_with_pairs_in_100_evaluations():
    problems = [BitWidths.drawn(24, seed) for seed in range(10)]
    methods = {
        "games": CombinatorialGames(),
        "genetic": Genetic(),
        "hill climb": LocalSearch(initial=1),
        "random": RandomSearch(),
    }
    means = _means(problems, 100, 2, methods)
    assert means["games"] == min(means.values()), means


class LanguageModel:
    """A byte-level transformer of four blocks, whose 24 matrices are quantized to 2, 3, 4 or 8 bits each."""

    space = Space({f"{part}{block}": Ordinal((2, 3, 4, 8)) for block in range(4) for part in "qkvoud"})
    price = 0.05

    def __init__(self):
        torch = pytest.importorskip("torch")
        import tiny_model

        self.torch, (rows, width, hidden) = torch, (64, 48, 128)
        torch.manual_seed(0)
        shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
        shapes |= {"u": (width, hidden), "d": (hidden, width)}
        weights = {f"{p}{b}": torch.randn(*shapes[p]) / shapes[p][0] ** 0.5 for b in range(4) for p in shapes}
        weights |= {"bytes": torch.randn(256, width) * 0.1, "places": torch.randn(rows, width) * 0.1}
        weights |= {"head": torch.randn(width, 256) / width**0.5}
        for w in weights.values():
            w.requires_grad_(True)
        text = tiny_model.text()
        learnt, held = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
        optimizer = torch.optim.AdamW(weights.values(), lr=3e-3)
        for step in range(300):
            windows = tiny_model.batch(learnt, 16, step)[:, : rows + 1]
            loss = self.loss(weights, windows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.weights = {name: w.detach() for name, w in weights.items()}
        self.windows = tiny_model.batch(held, 8, 0)[:, : rows + 1]
        self.rounded = {n: [self.quantized(self.weights[n], b) for b in (2, 3, 4, 8)] for n in self.space.parameters}

    def loss(self, weights, windows):
        torch = self.torch
        given, wanted = windows[:, :-1], windows[:, 1:]
        normed = lambda x: x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()  # noqa: E731
        x = weights["bytes"][given] + weights["places"]
        for b in range(4):
            h = normed(x)
            q, k, v = ((h @ weights[f"{p}{b}"]).unflatten(-1, (4, -1)).transpose(1, 2) for p in "qkv")
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.transpose(1, 2).flatten(2) @ weights[f"o{b}"]
            x = x + torch.relu(normed(x) @ weights[f"u{b}"]) @ weights[f"d{b}"]
        logits = normed(x) @ weights["head"]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    @staticmethod
    def quantized(weight, bits):
        scale = weight.abs().amax(0, keepdim=True) / (2 ** (bits - 1) - 1)
        return (weight / scale).round() * scale

    def __call__(self, points):
        bits = np.asarray((2, 3, 4, 8))[points.astype(int)]
        found = []
        with self.torch.no_grad():
            for row in points.astype(int):
                chosen = {name: self.rounded[name][level] for name, level in zip(self.rounded, row, strict=True)}
                found.append(float(self.loss(self.weights | chosen, self.windows)))
        return np.asarray(found) + self.price * bits.mean(axis=1)


@pytest.mark.slow
def test_bit_widths_of_a_language_model_in_100_evaluations_over_10_seeds():
    model = LanguageModel()
    methods = {
        "games": CombinatorialGames(),
        "genetic": Genetic(),
        "hill climb": LocalSearch(initial=1),
        "random": RandomSearch(),
    }
    means = _means([model] * 10, 100, 2, methods)
    assert means["games"] == min(means.values()), means
