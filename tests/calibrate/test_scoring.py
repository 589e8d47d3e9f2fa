"""Tables of served runs, training iterations and power are scored like those of operators."""

import numpy as np
import pytest

from nearpeak.calibrate.board import NEW, errors, lines
from nearpeak.calibrate.roofline import at_the_roofline
from nearpeak.calibrate.scoring import score
from nearpeak.calibrate.tables import find
from nearpeak.cost import predict_serving_table, write_table
from nearpeak.cost.stored import in_use
from nearpeak.cost.tables import predict_operators
from nearpeak.cost.training_tables import predict_training_table

NOISE = 0.1


def noisy(values, seed=0):
    return values * np.exp(NOISE * np.random.default_rng(seed).standard_normal(values.size))


def files(tmp_path, table):
    write_table(tmp_path / "made.parquet", table)
    return find([tmp_path / "made.parquet"])[0]


def runs():
    concurrency = np.tile(2 ** np.arange(8), 4)
    count = concurrency.size
    names = {"backend": "vllm", "model": "Qwen/Qwen3-32B", "gpu": "H100", "mode": "agg", "precision": "bf16"}
    columns = {name: np.full(count, value, object) for name, value in names.items()}
    sizes = {
        "isl": np.repeat([1024, 1024, 4096, 4096], 8),
        "osl": np.full(count, 256),
        "tp_size": np.repeat([2, 4] * 2, 8),
    }
    return columns | sizes | {"concurrency": concurrency, "batch_size": concurrency}


def test_served_runs_that_the_model_made_are_met_and_others_told_with_their_reason(tmp_path):
    table = runs()
    told = predict_serving_table(table)
    table |= {figure: noisy(told[figure], seed) for seed, figure in enumerate(("ttft", "tpot"))}
    table["model"][-4:] = "no/such"
    rows, _ = score(files(tmp_path, table), ())
    found = {line.group["operator"]: line for line in lines(rows, ("operator", "gpu"))}
    assert found.keys() == {"tpot, agg", "ttft, agg", "latency, agg"}
    for line in found.values():
        assert (line.group["gpu"], line.fit, line.rows, line.answered) == ("h100_sxm", NEW, 32, 28)
        assert 2 < line.median < 12
        assert line.rank > 0.9
        assert 0 < line.roofline < 60
    assert sum(count for reason, count in errors(rows).items() if "no/such" in reason) == 12


def test_nothing_is_faster_than_the_roofline_and_the_calibration_is_as_it_was_after(tmp_path):
    told = predict_serving_table(runs())
    with at_the_roofline(tmp_path):
        assert in_use() is not None
        least = predict_serving_table(runs())
    assert in_use() is None
    for figure in ("ttft", "tpot"):
        assert (least[figure] < told[figure]).all()
    weights = 32.8e9 * 2 / np.repeat([2, 4] * 2, 8) / 3.35e12
    assert (least["tpot"] > 0.9 * weights).all()


def test_training_iterations_that_the_model_made_are_met(tmp_path):
    micro = np.tile([1, 2, 4, 8], 4)
    columns = {
        "# GPUs": np.full(16, 8), "global batch": np.repeat([16, 32, 64, 128], 4), "micro batch": micro,
        "hidden size": np.full(16, 2048), "attention heads": np.full(16, 16), "# layers": np.full(16, 18),
        "sequence length": np.full(16, 1024), "tensor parallelism": np.full(16, 4),
        "data parallelism": np.full(16, 1), "pipeline parallelism": np.full(16, 2),
    }  # fmt: skip
    told = predict_training_table(columns)
    rows, _ = score(files(tmp_path, columns | {"iteration time (ms)": 1e3 * noisy(told["seconds"])}), ())
    (line,) = lines(rows, ("operator", "gpu", "engine"))
    assert line.group == {"operator": "training iteration", "gpu": "a100_sxm", "engine": "megatron"}
    assert (line.rows, line.answered) == (16, 16)
    assert 2 < line.median < 14


def test_watts_that_the_model_made_are_met(tmp_path):
    m = np.tile(2 ** np.arange(14), 6)
    names = {"gpu": "b200_sxm", "table": "gemm", "gemm_dtype": "bfloat16", "kernel_source": "vllm"}
    table = {name: np.full(m.size, value, object) for name, value in names.items()}
    table |= {"m": m, "n": np.full(m.size, 6144), "k": np.repeat([1024, 2048, 3072, 4096, 5120, 6144], 14)}
    table |= {"watts_limit": np.full(m.size, 1000.0), "watts": np.ones(m.size)}
    told = predict_operators(table, "power")
    table |= {"watts": noisy(told["watts"]), "seconds": told["seconds"]}
    rows, _ = score(files(tmp_path, table), ())
    (line,) = lines(rows, ("operator",))
    assert line.group["operator"] == "watts of gemm"
    assert line.answered == m.size
    assert 3 < line.median < 12


def test_a_table_that_lacks_a_column_is_unanswered_and_says_which(tmp_path):
    table = runs() | {"ttft": np.ones(32), "tpot": np.ones(32)}
    del table["isl"]
    rows, _ = score(files(tmp_path, table), ())
    assert not np.isfinite(rows.predicted).any()
    assert any("isl" in reason for reason in errors(rows))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["serving", "training"])
def test_published_tables_are_answered(shared, folder):
    rows, _ = score(find([shared / folder])[0], ())
    assert rows.measured.size > 800
    unanswered = [r for r in errors(rows) if "own fit" not in r]
    assert unanswered == []
