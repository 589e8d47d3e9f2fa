"""The board's figures, against closed forms and independent ones."""

import made
import numpy as np
import pytest
from scipy.stats import spearmanr

from nearpeak.calibrate.board import NEW, SEEN, Scored, errors, lines, spearman, two_constants
from nearpeak.calibrate.left_out import with_intervals
from nearpeak.calibrate.scoring import score
from nearpeak.calibrate.tables import find
from nearpeak.cost import write_table


def scored(measured, predicted, **columns):
    count = len(measured)
    text = {"gpu": "a", "operator": "gemm", "engine": "vllm", "evidence": "measured", "fit": NEW, "error": ""}
    names = {k: np.full(count, columns.get(k, v), object) for k, v in text.items()}
    low, high = (np.asarray(columns.get(k, np.full(count, np.nan)), float) for k in ("low", "high"))
    ideal = np.asarray(columns.get("ideal", np.full(count, np.nan)), float)
    cell = np.zeros(count, np.int64)
    return Scored(**names, measured=np.array(measured, float), predicted=np.array(predicted, float), low=low, high=high,
                  ideal=ideal, cell=cell)  # fmt: skip


def test_errors_bias_and_coverage_by_hand():
    (line,) = lines(scored([1, 2, 4, 8], [1.1, 1.8, 4.0, np.nan], low=[1, 1, 4.5, 1], high=[2, 3, 5, 9]))
    assert (line.rows, line.answered) == (4, 3)
    assert line.median == pytest.approx(10)
    assert line.mean == pytest.approx(20 / 3)
    assert line.bias == pytest.approx(0, abs=1e-9)
    assert line.coverage == pytest.approx(200 / 3)


def test_a_bias_keeps_its_sign():
    (line,) = lines(scored([1, 2, 3], [0.5, 1.0, 1.5]))
    assert line.bias == pytest.approx(-50)


def test_ranks_share_ties_as_in_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 200), rng.integers(0, 9, 200) + rng.normal(size=200).round()
    assert spearman(a.astype(float), b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_the_roofline_is_given_its_best_constants():
    rng = np.random.default_rng(0)
    ideal = 10 ** rng.uniform(-6, -2, 3000)
    measured = (ideal / 0.6 + 5e-6) * np.exp(0.02 * rng.standard_normal(ideal.size))
    share, latency = two_constants(ideal, measured)
    assert share == pytest.approx(0.6, rel=0.03)
    assert latency == pytest.approx(5e-6, rel=0.05)


def test_groups_are_kept_apart_and_unanswered_rows_are_counted_with_their_reason():
    found = lines(scored([1, 2, 3], [1, 2, np.nan], gpu=["a", "b", "b"]), ("gpu",))
    assert [(x.group["gpu"], x.rows, x.answered) for x in found] == [("a", 1, 1), ("b", 2, 1)]
    assert errors(scored([1, 2, 3], [1, np.nan, np.nan], error=["", "no", "no"])) == {"no": 2}


def test_intervals_of_rows_left_out_cover_80_percent_and_are_not_set_by_their_own_part():
    rng = np.random.default_rng(0)
    count = 20_000
    fold, group = rng.integers(0, 5, count), rng.integers(0, 3, count)
    spread = np.array([0.02, 0.1, 0.4])[group]
    measured = np.exp(spread * rng.standard_normal(count) + 0.05)
    kind = np.full(count, "measured", object)
    out = with_intervals(np.ones(count), measured, group.astype(str).astype(object), fold, kind)
    for g in range(3):
        inside = (out.low <= measured) & (measured <= out.high)
        assert inside[group == g].mean() == pytest.approx(0.8, abs=0.02)
    moved = np.where(fold == 0, 10 * measured, measured)
    again = with_intervals(np.ones(count), moved, group.astype(str).astype(object), fold, kind)
    np.testing.assert_array_equal(out.low[fold == 0], again.low[fold == 0])


def table(tmp_path, *tables):
    (tmp_path / "gemm").mkdir(exist_ok=True)
    write_table(tmp_path / "gemm" / "made.parquet", made.joined(*tables))
    return find([tmp_path])[0]


def test_rows_of_unknown_devices_and_times_that_are_none_are_counted_with_their_reason(tmp_path):
    known = made.gemm("l40s")
    unknown = known | {"gpu": np.full(160, "l400", object), "seconds": known["seconds"].copy()}
    known["seconds"][:3] = [np.nan, -1, 0]
    rows, _ = score(table(tmp_path, known, unknown))
    found = lines(rows, ("gpu",))
    assert {x.group["gpu"]: (x.rows, x.answered) for x in found} == {"l40s": (160, 157), "l400": (160, 0)}
    reasons = errors(rows)
    assert [n for reason, n in reasons.items() if "l400" in reason] == [160]
    assert reasons["seconds is no time above 0"] == 3


def test_rows_that_the_model_made_are_predicted_within_what_it_says_of_other_devices(tmp_path):
    rows, _ = score(table(tmp_path, made.gemm("l40s")))
    (line,) = lines(rows, ("gpu", "evidence"))
    assert line.fit == NEW
    assert line.group["evidence"] in ("transferred", "datasheet")
    assert 1 < line.median < 80
    assert line.rank > 0.95
    assert line.roofline < 12


def test_without_leaving_out_rows_of_the_fit_have_no_answer(tmp_path, monkeypatch):
    from nearpeak.calibrate import score_operators, store

    files = table(tmp_path, made.gemm("l40s"))
    rows, _ = score(files, ())
    assert lines(rows, ("gpu",))[0].answered == 160
    keys = score_operators.sampled(files[0].table(), "gemm", np.full(160, "", object))["gemm"].site
    source = store.Source("operators", "gemm", "l40s", 160, "", store.packed(keys[:80]))
    monkeypatch.setattr(score_operators, "about", lambda folder: store.About("x", 1, "", "", (source,)))
    rows, _ = score(files, ())
    found = {x.fit: (x.rows, x.answered) for x in lines(rows, ("gpu",))}
    assert found[SEEN] == (np.isin(keys, keys[:80]).sum(), 0)
    assert found[NEW][1] > 0
