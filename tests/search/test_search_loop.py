"""The loop: asking, telling, failing, stopping, and going on from a log as if nothing had happened."""

import math
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search import Categorical, Float, Integer, Ordinal, Search, Space, minimize
from nearpeak.search.default import Default
from nearpeak.search.log import Outcome
from nearpeak.search.loop import AllFailed, Stop
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.study import cube, trial

GRID = Space({"a": Integer(0, 19), "b": Ordinal(tuple(range(0, 40, 2))), "c": Integer(0, 4)}, ("a + b <= 50",))
METHODS = ("default", "table-bayes", "random", "genetic", "differential-evolution", "annealing", "local")


def bowl(c):
    return 1.0 + (c["a"] - 13) ** 2 + (c["b"] - 20) ** 2 / 4 + c["c"]


@pytest.mark.parametrize("method", METHODS)
def test_a_search_killed_anywhere_goes_on_as_if_it_had_not_been(method, tmp_path):
    whole = Search(GRID, method, seed=3, log=tmp_path / "whole.jsonl")
    for _ in range(30):
        c = whole.ask()
        whole.tell(c, bowl(c) if c["c"] != 2 else None)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    for cut in (1, 2, 17, 40, len(lines) - 1):
        log = tmp_path / f"{cut}.jsonl"
        log.write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
        again = Search(GRID, method, seed=3, log=log)
        while len(again.history) < 30:
            c = again.ask()
            again.tell(c, bowl(c) if c["c"] != 2 else None)
        again.close()
        np.testing.assert_array_equal(again.history.points, whole.history.points)
        assert log.read_bytes().count(b"told") == 30


@pytest.mark.parametrize("method", METHODS)
def test_a_grid_is_never_asked_twice_and_ends_when_it_is_exhausted(method):
    space = Space({"a": Integer(0, 5), "b": Integer(0, 4)})
    found = minimize(bowl_of_two, space, 100, method=method)
    assert len(found.history) == 30
    assert len(np.unique(found.history.points, axis=0)) == 30
    assert found.stopped == "every configuration of the space"


def bowl_of_two(c):
    return (c["a"] - 2) ** 2 + c["b"]


def test_a_failed_evaluation_teaches_to_stay_away():
    space = Space({"a": Integer(0, 99), "b": Integer(0, 99)})

    def half_fails(c):
        if c["a"] >= 50:
            raise MemoryError("no room")
        return 1 + abs(c["a"] - 30) + abs(c["b"] - 70)

    runs = [minimize(half_fails, space, 80, seed=seed) for seed in range(3)]
    assert np.mean([~found.history.succeeded[20:] for found in runs]) < 0.35  # half of the space fails
    found = runs[0]
    assert found.value <= 3
    assert "MemoryError: no room (half_fails" in next(iter(found.reasons.values()))


def test_when_all_fail_the_search_says_so_and_why():
    with pytest.raises(AllFailed, match=r"all 5 evaluations failed; the last, of \{.*\}: it gave nan"):
        minimize(lambda c: math.nan, GRID, 5)


def crashes_or_hangs(c):
    if c["a"] % 4 == 1:
        os._exit(3)
    if c["a"] % 4 == 2:
        time.sleep(30)
    return bowl(c)


def test_processes_that_crash_or_hang_are_failures_with_a_reason():
    begun = time.perf_counter()
    found = minimize(crashes_or_hangs, GRID, 16, method="random", workers=4, time_limit=0.5)
    assert time.perf_counter() - begun < 20
    why = set(found.reasons.values())
    assert why == {"its process ended with exit code 3", "it took longer than 0.5 s"}
    assert (found.history.succeeded == (found.history.points[:, 0] % 4 % 3 == 0)).all()


def test_the_log_of_another_search_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    Search(GRID, "random", seed=1, log=log).close()
    with pytest.raises(UsageError, match="its seed is 1, not 2"):
        Search(GRID, "random", seed=2, log=log)
    with pytest.raises(UsageError, match="its space is"):
        Search(Space({"a": Integer(0, 3)}), "random", seed=1, log=log)
    (tmp_path / "text").write_text("hello\nthere\n")
    with pytest.raises(UsageError, match="is no log of a search"):
        Search(GRID, "random", log=tmp_path / "text")


def test_it_stops_at_a_target_without_patience_or_out_of_time():
    assert minimize(bowl, GRID, 1000, method="random", stop=Stop(1000, target=60.0)).value <= 60
    patient = minimize(bowl, GRID, 1000, method="random", stop=Stop(1000, patience=7))
    assert len(patient.history) - 1 - patient.history.best == 7
    timed = minimize(lambda c: time.sleep(0.02) or bowl(c), GRID, 1000, method="random", stop=Stop(1000, seconds=0.2))
    assert len(timed.history) < 30


def test_what_is_given_first_is_tried_first_and_once():
    default = {"a": 5, "b": 10, "c": 1}
    found = minimize(bowl, GRID, 5, first=[default, default])
    assert GRID.describe(found.history.points[0]) == default
    assert len(np.unique(found.history.points, axis=0)) == 5


def test_a_batch_holds_different_points_and_waits_for_none():
    search = Search(GRID, "table-bayes", seed=0)
    for _ in range(3):
        points = search.ask_points(8)
        assert len(np.unique(points, axis=0)) == 8
        for p in points[::-1]:
            search.tell_point(p, Outcome(bowl(GRID.describe(p))))
    held = search.ask_points(4)
    assert not (search.ask_points(4)[:, None] == held[None]).all(axis=2).any()


def test_constraints_are_measured_and_kept():
    space = Space({"x": Float(0, 1), "y": Float(0, 1)})
    found = minimize(lambda c: Outcome(c["x"] + c["y"], constraints=(0.8 - c["x"],)), space, 25, constraints=1)
    assert found.best["x"] >= 0.8
    with pytest.raises(UsageError, match="measured constraints, not 1"):
        minimize(lambda c: 1.0, space, 3, constraints=1)


def test_numbers_that_make_no_sense_are_refused():
    for wrong in ({"budget": 0}, {"budget": 3, "workers": 0}, {"budget": 3, "time_limit": -1.0}):
        with pytest.raises(UsageError):
            minimize(bowl, GRID, **wrong)


def test_the_default_suits_the_space_and_what_was_seen():
    from nearpeak.search.default import Default
    from nearpeak.search.history import History

    cube = Space({"x": Float(0, 1), "y": Float(0, 1)})
    mixed = Space({"x": Float(0, 1), "n": Integer(0, 3)})

    def chosen(space, count):
        history = History.of(space.sample(count, np.random.default_rng(0)), np.arange(count, dtype=float))
        return type(Default().chosen(space, history)).__name__

    assert chosen(GRID, 30) == "TableBayes"
    assert chosen(cube, 30) == chosen(mixed, 30) == "Bayesian"
    assert chosen(cube, 1_000) == "DifferentialEvolution"
    assert chosen(mixed, 1_000) == chosen(GRID, 1_000) == "Genetic"


@pytest.mark.parametrize("method", ["genetic", "differential-evolution", "annealing", "local"])
def test_what_learns_where_it_stands_beats_chance_on_a_mixed_space(method):
    space = Space(
        {"kind": Ordinal(("a", "b", "c")), "rate": Float(1e-4, 1.0, log=True), "n": Integer(1, 40)}, ("n * rate <= 20",)
    )

    def cost(c):
        return abs(math.log(c["rate"] / 0.01)) + abs(c["n"] - 31) / 4 + 2 * (c["kind"] != "b")

    def median(name):
        return np.median([minimize(cost, space, 100, method=name, seed=s).value for s in range(7)])

    assert median(method) < 0.5 * median("random")


def test_a_log_cut_at_any_byte_goes_on_and_stays_readable(tmp_path):
    log = tmp_path / "log.jsonl"
    whole = Search(GRID, "random", seed=0, log=log)
    for _ in range(4):
        c = whole.ask()
        whole.tell(c, bowl(c))
    whole.close()
    data = log.read_bytes()
    for cut in range(len(data)):
        log.write_bytes(data[:cut])
        again = Search(GRID, "random", seed=0, log=log)
        while len(again.history) < 4:
            c = again.ask()
            again.tell(c, bowl(c))
        again.close()
        np.testing.assert_array_equal(again.history.points, whole.history.points)
        assert len(Search(GRID, "random", seed=0, log=log).history) == 4


def test_a_file_that_is_no_log_is_not_overwritten(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("precious")
    with pytest.raises(UsageError, match="is not overwritten"):
        Search(GRID, log=notes)
    assert notes.read_text() == "precious"


def test_a_point_told_before_it_is_asked_again_is_not_handed_out(tmp_path):
    log = tmp_path / "log.jsonl"
    first = Search(GRID, "random", log=log)
    pending = first.ask()
    first.close()
    again = Search(GRID, "random", log=log)
    again.tell(pending, 1.0)
    assert again.ask() != pending


@pytest.mark.parametrize("bad", [10**400, None, "fast", float("inf")])
def test_an_outcome_that_is_no_number_is_one_failure(bad):
    found = minimize(lambda c: bad if c["c"] == 2 else bowl(c), GRID, 12, method="random")
    assert (found.history.succeeded == (found.history.points[:, 2] != 2)).all()


def test_the_budget_is_the_most_whatever_the_other_ends():
    assert len(minimize(bowl, GRID, 5, method="random", stop=Stop(30)).history) == 5


def test_measured_constraints_lead_while_none_is_met():
    space = Space({"x": Integer(0, 59), "y": Integer(0, 59)})

    def corner(c):
        return Outcome(c["x"], constraints=(math.hypot(c["x"] - 57, c["y"] - 57) - 4,))

    for seed in range(3):
        found = minimize(corner, space, 40, constraints=1, seed=seed)
        assert np.flatnonzero(found.history.feasible)[0] < 25
        assert found.value <= 54
    with pytest.raises(AllFailed, match="none of 9 evaluations met the measured constraints; the nearest is"):
        minimize(lambda c: Outcome(1.0, constraints=(math.nan,)), Space({"x": Float(0, 1)}), 9, constraints=1)


@pytest.mark.parametrize("method", ["default", "bayes", "thompson", "shotgun", "aegis", "local", "genetic"])
def test_a_space_of_one_point_is_evaluated_once(method):
    assert len(minimize(lambda c: 1.0, Space({"x": Integer(1, 1)}), 5, method=method).history) == 1


@pytest.mark.parametrize("method", ["genetic", "differential-evolution", "annealing", "local"])
def test_batches_hold_no_point_twice_where_parameters_are_inactive(method):
    space = Space({"m": Categorical(("a", "b")), "x": Integer(0, 9), "y": Integer(0, 9)}, conditions={"x": "m == 'a'"})
    search = Search(space, method)
    for _ in range(12):
        points = search.ask_points(4)
        assert len({p.tobytes() for p in points}) == 4
        for p in points:
            search.tell_point(p, Outcome(np.nansum(p)))


def test_one_long_parameter_is_searched_within_reach():
    found = minimize(lambda c: abs(c["x"] - 12_345), Space({"x": Integer(1, 50_000)}), 40)
    assert found.value < 500


def starts_a_child_and_hangs(c):
    import subprocess

    subprocess.Popen(["sleep", "31.4159"])
    time.sleep(30)


def test_what_a_hanging_evaluation_started_ends_with_it():
    import subprocess

    with pytest.raises(AllFailed, match="longer than"):
        minimize(starts_a_child_and_hangs, GRID, 1, time_limit=0.5)
    assert subprocess.run(["pgrep", "-f", "sleep 31.4159"], capture_output=True, check=False).stdout == b""


def test_exact_values_are_searched_as_values_of_unknown_noise():
    problem = PROBLEMS["hartmann-3"]
    history = trial(RandomSearch(), problem, 14, 0)
    assert (history.variances == 0).all()
    unknown = replace(history, variances=np.full(14, np.nan))
    space = cube(problem.dimension)
    exact, plain, noisy = (
        Default().propose(space, h, 1, np.random.default_rng(0))
        for h in (history, unknown, replace(history, variances=np.full(14, 0.1)))
    )
    assert (exact == plain).all()
    assert (noisy != plain).any()
