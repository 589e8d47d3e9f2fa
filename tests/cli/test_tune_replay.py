"""`nearpeak tune --replay`: figures of each seed, as a table and as JSON."""

import json

import pytest
from click.testing import CliRunner

from nearpeak.cli import nearpeak
from nearpeak.errors import UnknownName, UsageError


@pytest.fixture
def table(tmp_path):
    import duckdb

    path = tmp_path / "made_up.parquet"
    query = "SELECT a, b, 1e-3 * (1 + abs(a - 5) + abs(b - 3)) AS seconds FROM range(9) t(a), range(12) u(b)"
    duckdb.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return path


def run(*arguments):
    return CliRunner().invoke(nearpeak, ["tune", *map(str, arguments)], catch_exceptions=False)


def test_each_seed_says_what_it_found_and_what_choosing_took(table):
    found = json.loads(run("--replay", table, "--budget", 60, "--seeds", 3, "--workers", 1, "--json").output)
    assert [one["seed"] for one in found["seeds"]] == [0, 1, 2]
    for one in found["seeds"]:
        best = one["best_over_optimum"]
        assert set(best) == {"50", "60"}
        assert best["50"] >= best["60"] >= 1.0
        assert one["choosing_seconds"] > 0
    assert found["configurations"] == 108
    assert found["median_best_over_optimum"]["60"] == 1.0


def test_seeds_are_the_same_on_one_worker_and_on_two(table):
    one, two = (
        json.loads(run("--replay", table, "--budget", 40, "--seeds", 2, "--workers", w, "--json").output)
        for w in (1, 2)
    )
    assert one["seeds"][1]["best_over_optimum"] == two["seeds"][1]["best_over_optimum"]


def test_a_table_is_printed_for_a_person(table):
    said = run("--replay", table, "--budget", 30, "--seeds", 2, "--method", "genetic", "--workers", 1).output
    assert "median" in said
    assert "108 configurations" in said


def test_what_makes_no_sense_is_refused(table):
    with pytest.raises(UnknownName, match="unknown method 'genetics'; did you mean genetic"):
        run("--replay", table, "--method", "genetics")
    assert run("--replay", table, "--budget", 0).exit_code == 2
    with pytest.raises(UsageError, match="is no file"):
        run("--replay", "none.parquet")
