"""Replays of measured tables: what is revealed, what it scores, what a default search finds in it."""

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search import Ordinal, Space
from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.replay import Table, performance_score, random_expectation, read_table, replay
from nearpeak.search.table_bayes import TableBayes, _most_promising


def synthetic(seed=0, sizes=(8, 9, 10, 4)):
    """Times of a made-up kernel: a bowl in log sizes, best at powers of two, some configurations failing."""
    rng = np.random.default_rng(seed)
    parameters = {"a": Ordinal((1, 2, 4, 8, 16, 32, 64, 128)), "b": Ordinal(tuple(range(16, 160, 16)))}
    parameters |= {"c": Ordinal(tuple(range(1, 11))), "d": Ordinal((0, 1, 2, 3))}
    space = Space(parameters, constraints=("a * c <= 640",))
    value = space.values(space.grid.points)
    alignment = np.log2(value["b"].astype(int) & -value["b"].astype(int))
    bowl = (np.log2(value["a"]) - 5) ** 2 / 8 + (value["b"] - 96) ** 2 / 4e3 + np.abs(value["c"] - 6) / 5
    seconds = 1e-3 * np.exp(
        bowl + 0.3 * (7 - alignment) + 0.2 * (value["d"] == 1) + 0.02 * rng.standard_normal(len(bowl))
    )
    seconds[(value["a"] >= 64) & (value["c"] >= 8)] = np.nan
    return Table("made-up", {}, Space(parameters, listed=space.grid.points), seconds, np.ones(len(seconds)))


def columns_of(table):
    values = table.space.values(table.space.grid.points)
    return {**values, "seconds": table.values, "evaluation_seconds": table.costs}


def write(path, rows):
    import duckdb

    with duckdb.connect() as connection:
        described = ", ".join(f"unnest(${i + 1}) AS {name}" for i, name in enumerate(rows))
        connection.execute(f"CREATE TABLE t AS SELECT {described}", [np.asarray(v).tolist() for v in rows.values()])
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    return path


def test_a_table_is_read_as_it_was_measured(tmp_path):
    table = synthetic()
    found = read_table(write(tmp_path / "t.parquet", columns_of(table)))
    assert found.space.grid.points.shape == table.space.grid.points.shape
    assert found.optimum == table.optimum
    point = table.space.grid.points[[100]]
    same = found.space.rows(table.space.describe(p) for p in point)
    assert found.evaluate(same[0]) == table.evaluate(point[0])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": [1, 2], "time": [1.0, 2.0]}, "no column 'seconds'"),
        ({"a": [1, 2], "seconds": [np.nan, np.nan]}, "all 2 failed"),
        ({"a": [1, 1], "seconds": [1.0, 2.0]}, "a configuration twice"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, columns, says):
    with pytest.raises(UsageError, match=says):
        read_table(write(tmp_path / "t.parquet", columns))
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_table(tmp_path / "text.parquet")
    with pytest.raises(UsageError, match="is no file"):
        read_table(tmp_path / "none.parquet")


def test_nothing_is_seen_of_a_row_that_was_not_evaluated():
    table = synthetic()
    run = replay(table, 60, 3)
    hidden = table.values.copy()
    seen = table.space.grid.find(replay_points(table, 60, 3))
    hidden[np.setdiff1d(np.arange(len(hidden)), seen)] = 1e9
    again = replay(Table(table.name, {}, table.space, hidden, table.costs), 60, 3)
    np.testing.assert_array_equal(run.values, again.values)


def replay_points(table, budget, seed):
    from nearpeak.search import Search

    search = Search(table.space, "default", seed=seed)
    for _ in range(budget):
        point = search.ask_points(1)[0]
        search.tell_point(point, table.evaluate(point))
    return search.history.points


def test_the_expectation_of_random_search_is_what_drawing_gives():
    values = np.random.default_rng(0).lognormal(size=200)
    values[:20] = np.nan
    rng = np.random.default_rng(1)
    filled = np.where(np.isnan(values), np.nanmax(values), values)
    draws = np.stack([np.minimum.accumulate(rng.permutation(filled)[:50]) for _ in range(20_000)])
    np.testing.assert_allclose(random_expectation(values, 50), draws.mean(axis=0), rtol=0.02)


def test_random_search_scores_nothing_and_the_default_nearly_all():
    table = synthetic()
    assert abs(performance_score(table, [replay(table, 60, s, "random") for s in range(40)])) < 0.15
    runs = [replay(table, 100, s) for s in range(5)]
    assert performance_score(table, runs) > 0.6
    assert np.median([r.best_after(table.optimum)[-1] for r in runs]) < 1.02


def test_a_table_too_large_to_model_whole_is_searched_nearly_as_well():
    table = synthetic()
    whole, part = ([replay(table, 80, s, TableBayes(whole=size)) for s in range(5)] for size in (20_000, 400))
    assert performance_score(table, part) > performance_score(table, whole) - 0.15


@pytest.mark.parametrize("kernel", ["convolution_MI250X", "pnpoly_RTX_2080_Ti"])
def test_the_default_is_ahead_of_random_search_on_measured_kernels(measurements, kernel):
    table = read_table(measurements / "kernels" / f"{kernel}.parquet")
    assert performance_score(table, [replay(table, 100, s) for s in range(3)]) > 0.4


@pytest.mark.parametrize("seed", range(30))
def test_the_most_promising_row_is_that_of_the_whole_table(seed):
    """Rows that cannot win are left out of the sum: the choice is the same, ties and hopeless cases included."""
    rng = np.random.default_rng(seed)
    mean, sd = rng.normal(0, 1, 2_000), np.exp(rng.normal(-1, rng.uniform(0, 2), 2_000))
    chance = np.log(rng.uniform(0.02, 1, 2_000)) if seed % 3 else np.asarray(0.0)
    best, rows = float(rng.normal(-2, 20 if seed % 2 else 1)), rng.permutation(2_000)[:1_500]
    scores = log_improvement((best - mean) / sd) + np.log(sd) + chance
    assert scores[_most_promising(mean, sd, best, chance, rows)] == scores[rows].max()
    if seed % 3:
        assert chance[_most_promising(mean, sd, None, chance, rows)] == chance[rows].max()
