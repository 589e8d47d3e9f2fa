"""Asynchronous successive halving, with and without a model, on 200 recorded trainings."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from spiral_trainings import DATA, going_on, judged, starting

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.loop import minimize
from nearpeak.search.parameters import Float, Integer
from nearpeak.search.space import Space
from nearpeak.search.strategies.asynchronous import Run
from nearpeak.search.trials.resumed import Resumed, Trials
from nearpeak.search.trials.successive_halving import (
    TOPIC,
    Recorded,
    SuccessiveHalving,
    promoted,
    recorded_in,
    replayed,
    rungs,
    time_to,
)
from nearpeak.search.trials.trainings import RECIPES, curves

TABLE = Path(__file__).parents[1] / "data" / "digit_trainings.npz"
SPACE = Space({"x": Float(0, 1), "epochs": Integer(1, 27, log=True)})
WORKERS = 4


@lru_cache
def digits() -> Recorded:
    """The table, with a median epoch of a second."""
    found = recorded_in(str(TABLE))
    return Recorded(found.recipes, found.losses, found.seconds / np.median(found.seconds))


def times(method: str, seeds: range) -> list[float]:
    """Seconds to within 1 % of the best."""
    target = 1.01 * digits().least
    made: dict[str, Callable[[], SuccessiveHalving]] = {
        "model": SuccessiveHalving,
        "random": lambda: SuccessiveHalving(surrogate=None),
        "full": lambda: SuccessiveHalving(rungs=1),
        "full, early model": lambda: SuccessiveHalving(rungs=1, initial=4),
    }[method]
    return [time_to(digits(), replayed(digits(), made(), WORKERS, seed, target), target) for seed in seeds]


def seen(rows: list[tuple[float, int, float]], pending: list[tuple[float, int]] = ()) -> History:  # type: ignore[assignment]
    """A history of ``(x, epochs, value)``."""
    points = np.array([row[:2] for row in rows], dtype=float)
    return History.of(points, np.array([row[2] for row in rows]), np.array(pending, dtype=float).reshape(-1, 2))


def idle(run: Run, until: float) -> float:
    """Share of the workers' time in which they had nothing to do."""
    busy = np.minimum(run.ended, until) - np.minimum(run.begun, until)
    return float(1 - busy.sum() / run.workers / until)


def test_rungs_divide_the_whole_by_eta() -> None:
    assert rungs(1, 27, 3).tolist() == [1, 3, 9, 27]
    assert rungs(1, 54, 3).tolist() == [2, 6, 18, 54]
    assert SuccessiveHalving(rungs=1).levels(SPACE).tolist() == [27]


def test_the_best_third_of_a_rung_is_promoted_once() -> None:
    levels, trials = rungs(1, 27, 3), Trials(SPACE, "epochs", 1)
    rows = [(0.1 * i, 1, float(i)) for i in range(6)]
    assert promoted(trials, levels, 3, seen(rows[:2])) is None
    first = promoted(trials, levels, 3, seen(rows))
    assert first is not None
    assert first.tolist() == [0.0, 3.0]
    second = promoted(trials, levels, 3, seen(rows, [(0.0, 3)]))
    assert second is not None
    assert second.tolist() == [0.1, 3.0]
    assert promoted(trials, levels, 3, seen(rows, [(0.0, 3), (0.1, 3)])) is None
    higher = promoted(trials, levels, 3, seen([*rows, (0.0, 3, 3.0), (0.1, 3, 2.0), (0.2, 3, 5.0)]))
    assert higher is not None
    assert higher.tolist() == [0.1, 9.0]
    failed = [(0.0, 1, np.nan), (0.1, 1, np.nan), (0.2, 1, np.nan)]
    assert promoted(trials, levels, 3, seen(failed)) is None


def test_what_runs_is_fantasised_so_that_workers_spread() -> None:
    method = SuccessiveHalving()
    rng = np.random.default_rng(0)
    x = rng.random(12)
    history = seen([(a, 1, (a - 0.6) ** 2 + 0.01 * (i % 2)) for i, a in enumerate(x)])
    rows = method.propose(SPACE, history.until(11), 8, np.random.default_rng(1))
    fresh = rows[rows[:, 1] == 1][:, 0]
    assert len(fresh) >= 4
    assert np.diff(np.sort(fresh)).min() > 1e-3


def test_the_same_history_gives_the_same_proposals() -> None:
    history = seen([(a, 1, (a - 0.6) ** 2) for a in np.random.default_rng(0).random(5)])
    a, b = (SuccessiveHalving().propose(SPACE, history, 3, np.random.default_rng(4)) for _ in range(2))
    assert (a == b).all()


def test_with_a_model_it_is_sooner_than_random_trials_and_full_trainings() -> None:
    seeds = range(3)
    model, random, full = (np.mean(times(name, seeds)) for name in ("model", "random", "full"))
    assert model < random
    assert model < full


@pytest.mark.slow
def test_ten_seeds_on_four_workers() -> None:
    seeds = range(10)
    model, random, full, early = (
        np.mean(times(name, seeds)) for name in ("model", "random", "full", "full, early model")
    )
    assert model < 0.75 * random
    assert model < 0.6 * min(full, early)


def test_workers_are_never_idle() -> None:
    recorded, target = digits(), 1.01 * digits().least
    for seed in range(2):
        run = replayed(recorded, SuccessiveHalving(), WORKERS, seed, target, charged=True)
        assert idle(run, time_to(recorded, run, target)) < 0.02
        assert (run.chosen > 0).any()


def test_promoted_trainings_go_on_in_processes_bit_for_bit(tmp_path: Path) -> None:
    space = Space({**RECIPES.parameters, "epochs": Integer(1, 9, log=True)})
    train = Resumed(starting, going_on, judged, tmp_path)
    found = minimize(train, space, 14, method=SuccessiveHalving(), workers=2)
    assert {1, 3} <= set(found.history.points[:, -1].astype(int))
    for point, value in zip(found.history.points, found.history.values, strict=True):
        whole = curves(point[None, :-1], DATA, int(point[-1]))[0]
        assert value == whole[-1] or (np.isnan(value) and np.isnan(whole[-1]))


def test_a_resource_must_be_counted() -> None:
    with pytest.raises(UsageError, match="Integer"):
        SuccessiveHalving().propose(
            Space({"x": Float(0, 1), "epochs": Float(1, 9)}), History.empty(2), 1, np.random.default_rng(0)
        )
    with pytest.raises(UsageError, match="epochs"):
        SuccessiveHalving().propose(Space({"x": Float(0, 1)}), History.empty(1), 1, np.random.default_rng(0))
    with pytest.raises(UsageError, match="eta"):
        SuccessiveHalving(eta=1)
    with pytest.raises(UsageError, match="recorded trainings"):
        recorded_in("nowhere.npz")


def test_the_topic_compares_methods() -> None:
    found = TOPIC.explain(table="", recipes=20, epochs=9, workers=2, seconds=1.0, seeds=1)
    assert len(found.tables[0].rows) == 4
    assert all(np.isfinite(float(row["mean_time"])) for row in found.tables[0].rows)
