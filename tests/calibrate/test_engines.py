"""The fit of engines finds constants that made a table, and leaves out what belongs together."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")

from nearpeak.calibrate import engine_intervals
from nearpeak.calibrate import engines as fits
from nearpeak.cost.engine import engines, of_version

CONCURRENCY = (1, 4, 16, 64, 128)
LAYOUTS = (("Qwen/Qwen3-8B", 1.0), ("Qwen/Qwen3-8B", 2.0), ("Qwen/Qwen3-32B", 4.0), ("meta-llama/Llama-3.1-70B", 8.0))
TRUE = {"step": 2e-3, "sequence": 2e-5, "graph": 0.8, "layer": 5e-4, "request": 0.03, "waves": 0.05, "together": 0.5}
LATER = {**TRUE, "step": 4e-3, "graph": 0.95}


def table():
    rows = [
        (model, tp, isl, osl, concurrency, version)
        for version in ("", "9.0")
        for model, tp in LAYOUTS
        for isl, osl in ((1024, 256), (4096, 1024))
        for concurrency in CONCURRENCY
    ]
    columns = dict(
        zip(("model", "tp_size", "isl", "osl", "concurrency", "backend_version"), zip(*rows, strict=True), strict=True)
    )
    found = {name: np.array(column, dtype=object) for name, column in columns.items()}
    found |= {
        n: np.array([v] * len(rows), dtype=object)
        for n, v in {"gpu": "h100_sxm", "backend": "vllm", "mode": "agg"}.items()
    }
    host = replace(engines()["vllm"], **TRUE, versions={"9.0": LATER})
    found |= {"ttft": np.ones(len(rows)), "tpot": np.ones(len(rows))}
    for own in fits.gathered(found).values():
        for version in ("", "9.0"):
            mine = own.version == version
            ttft, tpot, _ = fits.predicted(own.where(mine), of_version(host, version))
            found["ttft"][own.row[mine]], found["tpot"][own.row[mine]] = ttft, tpot
    return found


@pytest.fixture(scope="module")
def made():
    return table()


def median_error(found, figure):
    return np.median(np.abs(found[figure] / found[f"measured_{figure}"] - 1))


def test_the_fit_finds_the_constants_that_made_the_runs(made):
    plain = {name: column[made["backend_version"] == ""] for name, column in made.items()}
    host = fits.fit("vllm", fits.gathered(plain)["vllm"])
    for name in ("step", "graph", "waves"):
        assert getattr(host, name) == pytest.approx(TRUE[name], rel=0.1), name
    own = fits.gathered(plain)["vllm"]
    assert np.abs(fits.residuals(own, host)).max() < 0.05


def test_a_version_is_told_from_its_engine(made):
    host = fits.fit("vllm", fits.gathered(made)["vllm"])
    later = of_version(host, "9.0")
    assert later.graph > 0.85
    assert later.step > host.step


def test_what_is_left_out_is_predicted_by_the_others(made):
    found = fits.left_out(made, "configuration")
    assert np.isfinite(found["tpot"]).all()
    assert len(np.unique(found["group"])) == len(LAYOUTS)
    assert median_error(found, "tpot") < 0.03
    assert median_error(found, "ttft") < 0.05
    # Each configuration is in one part, whatever its version, lengths and concurrency.
    for name in np.unique(found["configuration"]):
        assert len(np.unique(found["group"][found["configuration"] == name])) == 1


def test_a_run_that_stands_in_the_table_twice_is_left_out_with_its_twin(made):
    twin = {name: np.concatenate([column, column[:5]]) for name, column in made.items()}
    twin["tp_size"][-5:] = 8.0  # the same figures under another layout
    found = fits.left_out(twin, "configuration")
    assert (found["group"][-5:] == found["group"][:5]).all()
    assert len(np.unique(found["group"])) == len(LAYOUTS)


def test_models_are_left_out_whole(made):
    found = fits.left_out(made, "model")
    assert len(np.unique(found["group"])) == len({model for model, _ in LAYOUTS})


def test_intervals_hold_as_many_new_runs_as_they_say():
    """Runs of a configuration err alike, so that the plain quantiles of a few hold fewer than 80 % of a new one's."""

    def errors(draw, parts):
        return np.repeat(draw.normal(0, 0.2, parts), 25) + draw.normal(0, 0.1, 25 * parts)

    part = np.repeat(np.arange(10), 25).astype(str).astype(object)
    held = {"stretched": [], "plain": []}
    for seed in range(100):
        draw = np.random.default_rng(seed)
        logs, new = errors(draw, 10), errors(draw, 1000)
        for name, (low, high) in {
            "stretched": engine_intervals.interval(logs, part),
            "plain": np.quantile(logs, [0.1, 0.9]),
        }.items():
            held[name].append(np.mean((low <= new) & (new <= high)))
    assert np.mean(held["plain"]) < 0.75
    assert np.mean(held["stretched"]) == pytest.approx(0.8, abs=0.03)


def test_coverage_is_scored_on_parts_that_set_no_quantile(made):
    found = fits.left_out(made, "configuration")
    wide = {name: column.copy() for name, column in found.items()}
    odd = found["group"] == found["group"][0]
    wide["measured_tpot"] = np.where(odd, 3.0, 1.0) * found["tpot"].astype(float)
    share = fits.coverage(wide)[("agg", "measured", "tpot")][1]
    # The odd part cannot vouch for itself.
    assert share <= 1 - odd.mean()
