"""Asynchronous successive halving with a model: stop the bad trials early, and learn from all where to start new ones.

Rungs are amounts of a resource, ``R / eta^k``. A worker that becomes free goes on with a trial that is among the best
``1 / eta`` of its rung and was not taken further yet, on the highest rung where there is one; else it starts a new
trial on the lowest rung. Nobody waits for a rung to fill.

New trials are drawn uniformly (ASHA), or proposed by one GP over configuration and resource together, so that many
short trials tell about the long ones: expected improvement at the highest rung that has enough results, averaged over
joint draws ("fantasies") of what the trials that run now will give.

Li et al.: A System for Massively Parallel Hyperparameter Tuning, MLSys 2020 (ASHA). Klein, Tiao, Lienart, Archambeau,
Seeger: Model-based Asynchronous Hyperparameter and Neural Architecture Search, 2020 (arXiv 2003.10865). Snoek,
Larochelle, Adams: Practical Bayesian Optimization of Machine Learning Algorithms, NeurIPS 2012 (fantasies).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.candidates import initial_design, maximize, unseen
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats, Integer
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.strategies.asynchronous import Run, simulate_workers
from nearpeak.search.surrogates.gp import GP
from nearpeak.search.surrogates.refitted import GPSurrogate, RefittedGP
from nearpeak.search.trials.resumed import Trials, resource_of
from nearpeak.search.trials.trainings import RECIPES, curves, spirals
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive


@dataclass(frozen=True)
class SuccessiveHalving:
    """The method.

    Attributes:
        resource: name of the parameter that is promoted, an Integer; its highest value is a full training.
        eta: one of so many is promoted. rungs: how many at most, the highest ones; None: down to the lowest value.
            With one rung every trial is trained in full: plain asynchronous Bayesian optimization.
        surrogate: of configuration and resource; None: new trials are drawn uniformly.
        draws: of what pending trials will give. initial: trials before the model is asked; None: the parameters and
            one.

    Raises:
        UsageError: eta is below 2, or there is no rung.
    """

    resource: str = "epochs"
    eta: int = 3
    rungs: int | None = None
    surrogate: GPSurrogate | None = field(default_factory=RefittedGP)
    draws: int = 16
    initial: int | None = None
    _trials: list[Trials] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.eta < 2 or (self.rungs is not None and self.rungs < 1):
            raise UsageError(f"halving needs eta of at least 2 and a rung, not eta {self.eta} and {self.rungs} rungs")

    def levels(self, space: Space) -> NDArray[np.intp]:
        """Amounts of the resource at which trials are judged, from the lowest to a full training, ``[rungs]``."""
        resource = resource_of(space, self.resource)
        return rungs(resource.low, resource.high, self.eta)[-self.rungs if self.rungs else 0 :]

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[at most count, width]``; fewer where the space has no more."""
        levels = self.levels(space)
        trials = self._of(space, int(levels[0]))
        before = len(history.pending)
        for _ in range(count):
            point = promoted(trials, levels, self.eta, history)
            if point is None:
                point = self._new(trials, levels, history, rng)
            if point is None:  # every configuration was begun: rather than idle, go on with the best
                point = promoted(trials, levels, 1, history)
            if point is None:
                break
            history = history.waiting_for(point[None])
        return history.pending[before:]

    def _of(self, space: Space, start: int) -> Trials:
        if not self._trials or self._trials[0].space is not space:
            self._trials[:] = [Trials(space, self.resource, start)]
        return self._trials[0]

    def _new(
        self, trials: Trials, levels: NDArray[np.intp], history: History, rng: np.random.Generator
    ) -> Floats | None:
        begun, space = trials.begun(history), trials.fresh
        if space.grid is not None and len(unseen(space, space.grid.points, begun)) == 0:
            return None
        if self.surrogate is None:
            return np.asarray(RandomSearch().propose(space, begun, 1, rng)[0])
        enough = len(space.parameters) if self.initial is None else self.initial
        amounts = trials.amount(history.points[history.succeeded])
        ready = [int(level) for level in levels if (amounts == level).sum() >= enough]
        if not ready:
            design = initial_design(space, 4 * enough, np.random.default_rng(history.seed))
            left = unseen(space, design, begun)
            tried = int(trials.numbers(np.vstack([history.points, history.pending])).max(initial=-1)) + 1
            start = tried if space.grid is None else 0
            return np.asarray(left[start] if start < len(left) else space.sample(1, rng)[0])
        gp = self.surrogate(trials.space, history, rng)
        score = fantasised_improvement(trials, gp, history, ready[-1], self.draws, rng)
        return maximize(space, score, begun, rng)


def rungs(low: int, high: int, eta: int) -> NDArray[np.intp]:
    """``high / eta^k``, rounded, down to ``low``, in rising order."""
    count = int(np.log(high / low) / np.log(eta) + 1e-9) + 1
    return np.unique(np.rint(high / float(eta) ** np.arange(count)).astype(np.intp))


def promoted(trials: Trials, levels: NDArray[np.intp], eta: int, history: History) -> Floats | None:
    """The trial to go on with at its next rung, ``[width]``; None where none has earned it.

    It is the best on the highest rung among those in the best ``1 / eta`` of their rung that were not taken further.
    """
    every = np.vstack([history.points, history.pending])
    if len(history) == 0:
        return None
    numbers, amounts = trials.numbers(every), trials.amount(every)
    values = np.where(history.succeeded, history.values, np.inf)
    for level, following in zip(levels[-2::-1], levels[:0:-1], strict=True):
        here = np.flatnonzero(amounts[: len(history)] == level)
        best = here[np.argsort(values[here], kind="stable")][: len(here) // eta]
        further = np.isin(numbers[best], numbers[amounts > level])
        left = best[~further & np.isfinite(values[best])]
        if len(left):
            return np.asarray(trials.given(history.points[left[:1]], int(following))[0])
    return None


def fantasised_improvement(
    trials: Trials, gp: GP, history: History, level: int, draws: int, rng: np.random.Generator
) -> Callable[[Floats], Floats]:
    """Log of the expected improvement at an amount of the resource, averaged over draws of what is pending.

    The incumbent of each draw is the least posterior mean, at that amount, of the trials begun. Given is a score of
    features of new trials.
    """
    pending = trials.space.encode(history.pending)
    every = np.vstack([history.points[history.succeeded], history.pending])
    seen = np.unique(trials.given(every, level), axis=0)
    known = trials.space.encode(seen)
    if len(pending) == 0:
        lowest = gp.predict(known)[0].min()

        def alone(x: Floats) -> Floats:
            mean, sd = gp.predict(trials.features(x, level))
            return log_improvement((lowest - mean) / sd) + np.log(sd)

        return alone
    mean, _ = gp.predict(pending)
    noise = gp.observation_variance * np.eye(len(pending))
    told = gp.told(pending, mean)
    drawn = np.linalg.cholesky(gp.covariance(pending, pending) + noise) @ rng.standard_normal((len(pending), draws))
    # What each draw adds to the mean anywhere is linear in how far it is from what was expected.
    pull = np.linalg.solve(gp.covariance(pending, pending) + noise, drawn)
    best = (gp.predict(known)[0][:, None] + gp.covariance(known, pending) @ pull).min(axis=0)

    def score(x: Floats) -> Floats:
        at = trials.features(x, level)
        mean, sd = told.predict(at)
        means = mean[:, None] + gp.covariance(at, pending) @ pull
        return np.asarray(logsumexp(log_improvement((best - means) / sd[:, None]), axis=1) + np.log(sd))

    return score


@dataclass(frozen=True)
class Recorded:
    """Trainings that were recorded: a table of trials that can be replayed.

    Attributes:
        recipes: rows of ``trainings.RECIPES``, ``[n, 6]``. losses: after each epoch, ``[n, epochs]``; NaN: diverged.
        seconds: of one epoch of each, ``[n]``.
    """

    recipes: Floats
    losses: Floats
    seconds: Floats

    def space(self, amounts: NDArray[np.intp]) -> Space:
        """The recorded recipes at some numbers of epochs, all listed."""
        epochs = np.repeat(amounts.astype(float), len(self.recipes))
        listed = np.column_stack([np.tile(self.recipes, (len(amounts), 1)), epochs])
        resource = Integer(int(amounts[0]), int(amounts[-1]), log=True)
        return Space({**RECIPES.parameters, "epochs": resource}, listed=listed)

    def trial(self, points: Floats) -> NDArray[np.intp]:
        """Which recipe rows of the space are of, ``[k]``."""
        return np.asarray((points[:, None, :-1] == self.recipes).all(axis=2).argmax(axis=1))

    def loss(self, points: Floats) -> Floats:
        """Losses of rows of the space, ``[k]``."""
        return np.asarray(self.losses[self.trial(points), np.rint(points[:, -1]).astype(int) - 1])

    def reached(self, points: Floats, target: float) -> Floats:
        """Epochs until the training of each row has a loss of ``target`` or less, ``[k]``; infinite: it never has."""
        good = self.losses[self.trial(points)] <= target
        return np.where(good.any(axis=1), good.argmax(axis=1) + 1.0, np.inf)

    @property
    def least(self) -> float:
        """The lowest loss that any training ends with."""
        return float(np.nanmin(self.losses[:, -1]))


@dataclass(frozen=True)
class UntilReached:
    """A method that is asked no more once a training that ended had a loss of ``target`` or less."""

    method: Method
    recorded: Recorded
    target: float

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """What the method proposes, or nothing, ``[at most count, width]``."""
        if len(history):
            amounts = np.rint(history.points[:, -1]).astype(int)
            reached = self.recorded.reached(history.points, self.target)
            if (reached <= amounts).any():
                return np.empty((0, space.width))
        return self.method.propose(space, history, count, rng)


def replayed(
    recorded: Recorded, method: SuccessiveHalving, workers: int, seed: int, target: float, charged: bool = False
) -> Run:
    """A search of recorded trainings on simulated workers; a promoted trial goes on from the epoch where it stopped.

    Args:
        target: loss at which no more work is handed out. charged: workers wait while the method chooses.
    """
    levels = rungs(1, recorded.losses.shape[1], method.eta)
    space = recorded.space(levels)
    ladder = method.levels(space)
    before = dict(zip(ladder.tolist(), [0, *ladder[:-1].tolist()], strict=True))

    def takes(point: Floats, rng: np.random.Generator) -> float:
        epochs = int(point[-1])
        return float((epochs - before[epochs]) * recorded.seconds[recorded.trial(point[None])[0]])

    return simulate_workers(
        UntilReached(method, recorded, target), recorded.loss, space, workers, takes,
        len(ladder) * len(recorded.recipes), seed, charged=charged,
    )  # fmt: skip


def time_to(recorded: Recorded, run: Run, target: float) -> float:
    """Seconds until a training, after any of its epochs, had a loss of ``target`` or less; infinite if none had."""
    first, last = recorded.reached(run.points, target), np.rint(run.points[:, -1]).astype(int)
    # An epoch before those of this evaluation belongs to an earlier one of the same trial.
    moment = run.ended - (last - np.minimum(first, last)) * recorded.seconds[recorded.trial(run.points)]
    return float(np.where(first <= last, np.maximum(moment, run.begun), np.inf).min())


METHODS: Final[dict[str, Callable[[], SuccessiveHalving]]] = {
    "halving with a model": SuccessiveHalving,
    "halving, random trials": lambda: SuccessiveHalving(surrogate=None),
    "full trainings with a model": lambda: SuccessiveHalving(rungs=1),
    "full trainings, random": lambda: SuccessiveHalving(rungs=1, surrogate=None),
}
"""What a replay compares: by name, what makes a fresh one."""


def _explain(table: str, recipes: int, epochs: int, workers: int, seconds: float, seeds: int) -> Explanation:
    require_positive(recipes=recipes, epochs=epochs, workers=workers, seconds=seconds, seeds=seeds)
    recorded = recorded_in(table) if table else trained_now(recipes, epochs)
    recorded = Recorded(recorded.recipes, recorded.losses, recorded.seconds * seconds / np.median(recorded.seconds))
    target = 1.01 * recorded.least
    rows: list[dict[str, float | str]] = []
    for name, made in METHODS.items():
        runs = [replayed(recorded, made(), workers, seed, target, charged=True) for seed in range(seeds)]
        times = [time_to(recorded, run, target) for run in runs]
        rows.append(
            {
                "method": name,
                "mean_time": float(np.mean(times)),
                "trainings": float(np.mean([len(run.values) for run in runs])),
                "choosing_time": float(np.mean([run.chosen.mean() for run in runs])),
            }
        )
    fastest = min(rows, key=lambda row: float(row["mean_time"]))
    return Explanation(
        {"trials": len(recorded.recipes), "epochs": recorded.losses.shape[1], "least_loss": recorded.least},
        (Table(f"Until a training is within 1 % of the least loss, {workers} workers", tuple(rows)),),
        (f"{fastest['method']} is first, on the mean of {seeds} seeds.",),
    )


def recorded_in(path: str) -> Recorded:
    """A file that ``tools/record_trainings.py`` wrote.

    Raises:
        UsageError: there is none, or it holds no trainings.
    """
    try:
        with np.load(path) as held:
            found = [np.asarray(held[name], dtype=float) for name in ("recipes", "losses", "seconds")]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"no recorded trainings in {path!r} ({error}): recipes, losses, seconds in an .npz") from None
    return Recorded(*found)


def trained_now(recipes: int, epochs: int, seed: int = 0) -> Recorded:
    """Small networks that learn to tell the arms of a spiral apart, trained here; an epoch takes steps and units."""
    chosen = RECIPES.sample(recipes, np.random.default_rng(seed))
    values = RECIPES.values(chosen)
    losses = curves(chosen, spirals(1024, seed=seed), epochs, seed)
    return Recorded(chosen, losses, (16 / values["batch"] + 0.1) * (1 + values["width"] / 48))


TOPIC = Topic(
    "halving",
    "How soon do many workers find a good training if the bad ones are stopped early and a model proposes new ones?",
    "Klein et al., Model-based Asynchronous Hyperparameter and Neural Architecture Search, 2020 (arXiv 2003.10865)",
    (
        Option("table", str, "An .npz of recorded trainings; without one, small networks are trained now.", ""),
        Option("recipes", int, "Networks to train where there is no table.", 60),
        Option("epochs", int, "Epochs of each, where there is no table.", 27),
        Option("workers", int, "Workers.", 4),
        Option("seconds", float, "Median duration of an epoch, seconds.", 1.0),
        Option("seeds", int, "Searches of each method.", 3),
    ),
    _explain,
    "--recipes 40 --epochs 27 --seeds 2",
)
