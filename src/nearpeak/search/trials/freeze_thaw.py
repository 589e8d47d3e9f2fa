"""Freeze-thaw: stop and take up trainings at any epoch, by what one more epoch tells about where the best one ends.

The model of ``learning_curves`` believes, from the part of each curve that was seen, where each training will end. A
basket holds the trainings begun and the new configurations whose asymptotes promise most (expected improvement). For
each of them the next epochs are imagined, and the one is trained whose epochs take most uncertainty from the place of
the least asymptote in the basket:

    argmax_j  H[P_min] - E_y[ H[P_min | y_j] ],    P_min(i) = Pr(asymptote i is the least)

where P_min is counted over joint draws. An observation of curve ``j`` with the precision ``w`` changes beliefs about
all asymptotes by ``C_:j sqrt(w / (1 + w C_jj))`` times a standard normal number, which is integrated by a Gauss-Hermite
rule.

Swersky, Snoek, Adams: Freeze-Thaw Bayesian Optimization, arXiv:1406.3896 (2014), section 4. Hennig, Schuler: Entropy
Search for Information-Efficient Global Optimization, JMLR 2012.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import ndtri

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.candidates import initial_design, unseen
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.strategies.asynchronous import Run, simulate_workers
from nearpeak.search.surrogates.refitted import learning_count
from nearpeak.search.trials.learning_curves import Asymptotes, Curves, Decay, asymptotes, fit
from nearpeak.search.trials.resumed import Trials, resource_of
from nearpeak.search.trials.successive_halving import (
    Recorded,
    SuccessiveHalving,
    UntilReached,
    recorded_in,
    replayed,
    time_to,
    trained_now,
)
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

_NODES, _WEIGHTS = hermegauss(5)
_SHARES = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True)
class FreezeThaw:
    """The method.

    Attributes:
        resource: name of the parameter that says how long to train, an Integer. step: how much of it between two
            decisions.
        old, new: trials begun, and new configurations, in the basket. draws: of asymptotes for P_min.
        initial: trials begun before the model is asked; None: half the parameters, and three at least.
        growth: share by which observations grow between two fits of the hyperparameters.

    Raises:
        UsageError: the basket or the step is empty.
    """

    resource: str = "epochs"
    step: int = 1
    old: int = 10
    new: int = 3
    draws: int = 1_000
    initial: int | None = None
    growth: float = 0.2
    _trials: list[Trials] = field(default_factory=list, repr=False, compare=False)
    _learnt: dict[bytes, Decay] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.step, self.old, self.new, self.draws) < 1:
            raise UsageError(
                f"step, old, new and draws are 1 or more, not {self.step}, {self.old}, {self.new}, {self.draws}"
            )

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[at most count, width]``: trials with a step more, or new ones."""
        if not self._trials or self._trials[0].space is not space:
            self._trials[:] = [Trials(space, self.resource, min(self.step, resource_of(space, self.resource).high))]
        trials, before = self._trials[0], len(history.pending)
        for _ in range(count):
            point = self._next(trials, history, rng)
            if point is None:
                break
            history = history.waiting_for(point[None])
        return history.pending[before:]

    def _next(self, trials: Trials, history: History, rng: np.random.Generator) -> Floats | None:
        space, begun = trials.fresh, trials.begun(history)
        every = np.vstack([history.points, history.pending])
        started = int(trials.numbers(every).max(initial=-1)) + 1
        first = max(len(space.parameters) // 2, 3) if self.initial is None else self.initial
        if started < first or not history.succeeded.any():
            design = initial_design(space, 4 * first, np.random.default_rng(history.seed))
            left = unseen(space, design, begun)
            start = started if space.grid is None else 0
            if len(left) > start:
                return np.asarray(left[start])
        believed, rows = self.believed(trials, history)
        fresh = self._fresh(space, begun, rng)
        joint = asymptotes(believed.decay, believed.curves.joined(space.encode(fresh)))
        lowest = float(joint.mean[: len(rows)].min())
        promise = log_improvement((lowest - joint.mean) / joint.sd) + np.log(joint.sd)
        amounts = trials.amount(history.points[rows])
        waiting = _waits(trials, history.points[rows], history.pending)
        most = trials.resource.high
        over = (amounts >= most) | waiting | ~np.isfinite(history.values[rows])
        stuck = np.append(over, np.zeros(len(fresh), dtype=bool))
        is_new = np.arange(len(promise)) >= len(rows)
        basket = np.concatenate(
            [
                _best(promise, ~is_new & ~stuck, self.old),
                _best(promise, is_new, self.new),
                _best(-joint.mean, ~is_new & stuck, self.old),
            ]
        )
        open_to = np.flatnonzero(~stuck[basket])
        if len(open_to) == 0:
            return None
        covariance = joint.covariance[np.ix_(basket, basket)]
        told = information(joint.mean[basket], covariance, joint.gained(1)[basket], open_to, self.draws, rng)
        chosen = int(basket[open_to[np.argmax(told)]])
        if chosen >= len(rows):
            return np.asarray(fresh[chosen - len(rows)])
        point = history.points[rows[chosen]]
        return np.asarray(trials.given(point[None], min(int(amounts[chosen]) + self.step, most))[0])

    def believed(self, trials: Trials, history: History) -> tuple[Asymptotes, NDArray[np.intp]]:
        """Beliefs about the asymptotes of the trials begun, and the last evaluation of each, ``[n]`` each."""
        curves, rows = curves_of(trials, history, self.step)
        count = learning_count(len(history), self.growth, 10_000)
        some, _ = curves_of(trials, history.until(count), self.step)
        key = some.losses.tobytes() + some.seen.tobytes()
        if key not in self._learnt:
            self._learnt.clear()
            groups = trials.space.groups
            self._learnt[key] = fit(some, groups)
        return asymptotes(self._learnt[key], curves), rows

    def _fresh(self, space: Space, begun: History, rng: np.random.Generator) -> Floats:
        if space.grid is not None:
            left = unseen(space, space.grid.points, begun)
            return left[rng.permutation(len(left))[:256]]
        return space.sample(256, rng)


def _waits(trials: Trials, points: Floats, pending: Floats) -> NDArray[np.bool_]:
    """Which rows are of trials that run now, ``[n]``."""
    numbers = trials.numbers(np.vstack([points, pending]))
    return np.isin(numbers[: len(points)], numbers[len(points) :])


def _best(score: Floats, allowed: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    order = np.argsort(np.where(allowed, -score, np.inf), kind="stable")[:count]
    return order[allowed[order]]


def curves_of(trials: Trials, history: History, step: int) -> tuple[Curves, NDArray[np.intp]]:
    """The curves of a history, a moment every ``step`` of the resource, and the last row of each trial, ``[n]``.

    Where a training failed it counts as the worst loss that any gave.
    """
    numbers, amounts = trials.numbers(history.points), trials.amount(history.points)
    moments = np.ceil(amounts / step).astype(np.intp)
    worst = float(np.nanmax(np.where(history.succeeded, history.values, -np.inf)))
    n, most = int(numbers.max()) + 1, int(np.ceil(trials.resource.high / step))
    losses, seen = np.zeros((most, n)), np.zeros(n, dtype=np.intp)
    losses[moments - 1, numbers] = np.where(history.succeeded, history.values, worst)
    np.maximum.at(seen, numbers, moments)
    rows = np.zeros(n, dtype=np.intp)
    last = moments == seen[numbers]
    rows[numbers[last]] = np.flatnonzero(last)
    return Curves(trials.space.encode(trials.given(history.points[rows], trials.start)), losses, seen), rows


def information(
    mean: Floats, covariance: Floats, precision: Floats, which: NDArray[np.intp], draws: int, rng: np.random.Generator
) -> Floats:
    """Nats that one observation of each takes from the place of the least of some normal variables, ``[len(which)]``.

    Args:
        mean, covariance: of the variables, ``[b]`` and ``[b, b]``. precision: of an observation of each about it,
            ``[b]``. which: those that can be observed. draws: for the probability of each to be the least; all
            distributions are drawn from the same normal numbers.
    """
    b = len(mean)
    unit = ndtri((np.arange(draws)[:, None] + rng.random((draws, b))) / draws)
    normal = rng.permuted(unit, axis=0)
    spread = np.sqrt(np.trace(covariance) / b)
    jitter = 1e-9 * spread**2 * np.eye(b)
    column = covariance[:, which].T
    weight = precision[which] / (1 + precision[which] * covariance[which, which])
    after = covariance - weight[:, None, None] * column[:, :, None] * column[:, None, :]
    drawn = np.einsum("sb,jcb->jsc", normal, np.linalg.cholesky(after + jitter))
    moved = mean + np.sqrt(weight)[:, None, None] * column[:, None, :] * _NODES[None, :, None]
    least = (moved[:, :, None, :] + drawn[:, None]).argmin(axis=-1)
    counts = (least[..., None] == np.arange(b)).mean(axis=2)
    before = _entropy((_SHARES[None, :, None] * counts).sum(axis=1))
    return np.asarray(before - (_SHARES * _entropy(counts)).sum(axis=1))


def _entropy(share: Floats) -> Floats:
    return np.asarray(-(share * np.log(share.clip(min=1e-300))).sum(axis=-1))


def thawed(recorded: Recorded, method: FreezeThaw, target: float, seed: int) -> Run:
    """A search of recorded trainings by one worker; the clock counts epochs. It ends when one has reached a loss."""
    epochs = recorded.losses.shape[1]
    space = recorded.space(np.arange(method.step, epochs + 1, method.step))
    return simulate_workers(
        UntilReached(method, recorded, target), recorded.loss, space, 1, lambda point, rng: float(method.step),
        len(recorded.recipes) * epochs, seed,
    )  # fmt: skip


def _explain(table: str, recipes: int, epochs: int, seed: int) -> Explanation:
    require_positive(recipes=recipes, epochs=epochs)
    every = recorded_in(table) if table else trained_now(recipes, epochs, seed)
    whole = np.flatnonzero(np.isfinite(every.losses).all(axis=1))
    some = np.random.default_rng(seed).permutation(whole)[:recipes]
    recorded = Recorded(every.recipes[some], every.losses[some], np.ones(len(some)))
    target, length = 1.01 * recorded.least, recorded.losses.shape[1]
    run = thawed(recorded, FreezeThaw(), target, seed)
    full = replayed(recorded, SuccessiveHalving(rungs=1), 1, seed, target)
    spent, ran = time_to(recorded, run, target), time_to(recorded, full, target)
    given = np.bincount(recorded.trial(run.points), minlength=len(some))
    order = np.argsort(recorded.losses[:, -1])[:12]
    return Explanation(
        {
            "trainings": len(some),
            "epochs_of_a_training": length,
            "least_loss": recorded.least,
            "freeze_thaw_epochs": spent,
            "run_to_end_epochs": ran,
            "epochs_share": spent / ran,
        },
        (Table.of("Epochs given to the trainings that end best", rank=np.arange(len(order)) + 1,
                  final_loss=recorded.losses[order, -1], epochs=given[order]),),
        (
            f"Freeze-thaw comes within 1 % of the least final loss after {spent:g} epochs of all trainings together; "
            f"Bayesian optimization that runs each to its end after {ran:g}.",
        ),
    )  # fmt: skip


TOPIC = Topic(
    "freeze-thaw",
    "Which training should go on for another epoch, and when is it better to start a new one?",
    "Swersky, Snoek, Adams, Freeze-Thaw Bayesian Optimization, 2014 (arXiv 1406.3896)",
    (
        Option("table", str, "An .npz of recorded trainings; without one, small networks are trained now.", ""),
        Option("recipes", int, "Trainings to choose from.", 24),
        Option("epochs", int, "Epochs of each, where there is no table.", 30),
        Option("seed", int, "Of the choice of trainings and of the search.", 0),
    ),
    _explain,
    "--recipes 16 --epochs 20",
)
