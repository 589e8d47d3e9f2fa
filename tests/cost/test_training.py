"""The training step: published memory and schedules by hand, orderings of time, and measured iterations left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nearpeak.cost import predict_training_table, train_step, training_ledger, training_platform, ways_to_fit
from nearpeak.cost.files import read_table
from nearpeak.cost.training import TrainingEngine, assemble, intervals, model_flops, training_engine
from nearpeak.cost.training_memory import activation_bytes, layer_activations, vocabulary
from nearpeak.cost.training_tables import gpt
from nearpeak.cost.training_work import MicroBatch
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import node_of
from nearpeak.workload import TrainingJob, read

MEASURED = Path(__file__).parents[3] / "shared" / "measurements" / "training" / "megatron_single_node.parquet"
measured = pytest.mark.skipif(not MEASURED.is_file(), reason="the shared measurements are not beside this checkout")
A100, H100 = node_of("a100_sxm"), node_of("h100_sxm")
GPT = gpt(2048, 16, 24, 1024)
JOB = TrainingJob(GPT, 1024, 64, micro_batch=2, flash=False, dropout=True)


def seconds(job, node=A100):
    return train_step(training_platform(node), job, node)


# Memory.


@pytest.mark.parametrize(("a", "h", "s", "b"), [(64, 6144, 2048, 4), (96, 12288, 2048, 1), (128, 20480, 2048, 1)])
def test_a_layer_keeps_what_korthikanti_counts(a, h, s, b):
    """Equations 1, 2, 4 and 6 of Korthikanti et al. 2022, and the input alone with full recomputation."""
    job = TrainingJob(gpt(h, a, 4, s), s, b, b, flash=False, dropout=True)

    def kept(**change):
        return float(layer_activations(replace(job, **change))[0])

    sbh, scores, t = s * b * h, 5 * a * s / h, 8
    assert kept() == pytest.approx(sbh * (34 + scores))
    assert kept(tp=t) == pytest.approx(sbh * (10 + 24 / t + scores / t))
    assert kept(tp=t, sequence_parallel=True) == pytest.approx(sbh / t * (34 + scores))
    assert kept(tp=t, sequence_parallel=True, recompute=1) == pytest.approx(sbh / t * 34)
    assert kept(flash=True) == pytest.approx(sbh * 34)
    assert kept(recompute=2) == pytest.approx(2 * sbh)


def test_model_states_are_those_of_zeros_table():
    """Table 1 of Rajbhandari et al. 2020: 7.5 G parameters over 64 replicas: 120, 31.4, 16.6 and 1.88 GB."""
    hidden, layers = 4096, 37
    model = gpt(hidden, 32, layers, 1024, vocab=4096)
    job = TrainingJob(model, 1024, 64, dp=64, zero=np.arange(4))
    ledger = training_ledger(job)
    states = ledger.parameters + ledger.gradients + ledger.optimizer
    count = (12 * hidden**2 + 13 * hidden) * layers + (4096 + 1024) * hidden + 2 * hidden
    assert states[0] == pytest.approx(16 * count)
    assert states / count * 7.5e9 == pytest.approx([120e9, 31.4e9, 16.6e9, 1.88e9], rel=0.01)


def test_in_flight_micro_batches_follow_the_schedule():
    """1F1B holds ``pp`` on the first stage and one on the last; interleaved (pp - 1) / v more (Korthikanti 4.2.3)."""
    job = replace(JOB, pp=4, micro_batch=1)
    layer, _ = layer_activations(job)
    assert activation_bytes(job, True) == pytest.approx(4 * 6 * layer)
    assert activation_bytes(job, False) == pytest.approx(1 * 6 * layer)
    assert activation_bytes(replace(job, virtual_stages=3), True) == pytest.approx((4 + 3 / 3) * 6 * layer)
    assert activation_bytes(replace(job, global_batch=2), True) == pytest.approx(2 * 6 * layer)


def test_all_parameters_are_on_some_device_and_none_is_twice():
    from nearpeak.workload import parameters

    model = read("Qwen/Qwen3-8B")
    whole = parameters(model).total
    for tp, dp in ((1, 1), (4, 1), (8, 8)):
        job = TrainingJob(model, 4096, 64, tp=tp, dp=dp, zero=3)
        ledger = training_ledger(job)
        # Norms are repeated by tensor ranks, and a table that is cut is padded.
        assert ledger.parameters * tp * dp / 2 == pytest.approx(whole, rel=2e-3)
        assert ledger.optimizer * tp * dp / 12 == pytest.approx(whole, rel=2e-3)


def test_cut_tables_are_padded_to_whole_blocks():
    assert vocabulary(replace(JOB, tp=np.array([1, 2, 8]))).tolist() == [50257, 25216, 6400]


def test_a_job_that_does_not_fit_is_told_what_would_make_it():
    job = TrainingJob(read("Qwen/Qwen3-32B"), 4096, 64, micro_batch=2, tp=4, dp=2, pp=2)
    assert not training_ledger(job).fits(H100.device)
    ways = ways_to_fit(job, H100.device)
    assert {"full recomputation", "zero 3"} <= {name for name, _ in ways}
    assert all(used <= H100.device.memory_capacity for _, used in ways)
    assert ways_to_fit(replace(job, zero=3, recompute=2), H100.device) == []


# Time.

PLAIN = TrainingEngine("a100_sxm", 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 40.0, {}, {})
"""An engine without a host."""


def by_hand(forward, backward, head=0.0, hop=0.0, gradients=0.0):
    nothing = (np.zeros(()), np.zeros(()))
    pair = (np.asarray(forward), np.asarray(backward))
    ends = (np.asarray(head), np.asarray(head))
    work = dict.fromkeys(("experts", "attention", "scores", "moving", "said", "head_moving", "embedding"), nothing)
    zero = np.zeros(())
    return MicroBatch(
        products=pair,
        head_products=ends,
        unaligned=np.asarray(False),
        hop=np.asarray(hop),
        gradients=np.asarray(gradients),
        gathers=zero,
        update=zero,
        **work,
    )


@pytest.mark.parametrize(("p", "v"), [(2, 1), (4, 1), (4, 2), (4, 6), (8, 3)])
def test_the_bubble_is_that_of_narayanan(p, v):
    """(p - 1) / (v m) of the ideal time (Narayanan et al. 2021, section 2.2)."""
    m = 16
    job = TrainingJob(GPT, 1024, m, pp=p, virtual_stages=v)
    step = assemble(by_hand(1.0, 2.0), job, PLAIN)
    assert step.total == pytest.approx(24 / p * 3.0 * m * (1 + (p - 1) / (v * m)))
    assert step.bubble / (step.forward + step.backward) == pytest.approx((p - 1) / (v * m))


def simulated(forward, backward, m):
    """Makespan of 1F1B, pass by pass: stage ``i`` warms up with ``pp - i - 1`` forward passes, then alternates."""
    pp = len(forward)
    orders = []
    for i in range(pp):
        warm = min(pp - i - 1, m)
        order = [("f", k) for k in range(warm)]
        for k in range(m - warm):
            order += [("f", warm + k), ("b", k)]
        orders.append(order + [("b", k) for k in range(m - warm, m)])
    done, free, at = {}, [0.0] * pp, [0] * pp
    while any(at[i] < len(orders[i]) for i in range(pp)):
        for i in range(pp):
            while at[i] < len(orders[i]):
                kind, k = orders[i][at[i]]
                before = (kind, k, i - 1) if kind == "f" else (kind, k, i + 1)
                needed = [before] if 0 <= before[2] < pp else []
                needed += [("f", k, i)] if kind == "b" else []
                if any(n not in done for n in needed):
                    break
                start = max([free[i], *(done[n] for n in needed)])
                free[i] = done[kind, k, i] = start + (forward[i] if kind == "f" else backward[i])
                at[i] += 1
    return max(free)


@pytest.mark.parametrize("head", [0.0, 3.0, 12.0])
@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 4), (4, 16), (8, 32)])
def test_a_pipeline_takes_what_its_schedule_takes(p, m, head):
    """The stage with the head sets the pace, and the others are waited for once: as simulated pass by pass."""
    step = assemble(by_hand(1.0, 2.0, head), TrainingJob(GPT, 1024, m, pp=p), PLAIN)
    layers = 24 / p
    forward = [layers] * (p - 1) + [layers + head]
    backward = [2 * layers] * (p - 1) + [2 * layers + head]
    assert step.total == pytest.approx(simulated(forward, backward, m))


def test_recomputation_costs_a_forward_pass_and_selective_only_attention():
    base, full, selective = (float(seconds(replace(JOB, tp=8, recompute=r)).total) for r in (0, 2, 1))
    assert base < selective < full
    step = seconds(replace(JOB, recompute=2, micro_batch=8))
    assert step.recompute == pytest.approx(step.forward, rel=0.2)
    flash = replace(JOB, flash=True)
    assert seconds(replace(flash, recompute=1)).total == pytest.approx(float(seconds(flash).total))


def test_communication_that_nothing_hides_is_all_exposed():
    work = by_hand(1.0, 2.0, gradients=100.0)
    job = TrainingJob(GPT, 1024, 16, dp=4)
    assert assemble(work, replace(job, overlap=False), PLAIN).gradients == pytest.approx(100.0)
    # The last micro-batch's backward pass takes 48 s; the rest of 100 s is exposed.
    assert assemble(work, job, PLAIN).gradients == pytest.approx(52.0)
    # Where all of it could hide, the last bucket still cannot.
    assert assemble(by_hand(1.0, 2.0, gradients=24.0), job, PLAIN).gradients == pytest.approx(1.0)
    # ZeRO-2 keeps no whole gradient, so every one of four micro-batches reduces its own.
    assert assemble(work, replace(job, zero=2), PLAIN).gradients == pytest.approx(4 * 52.0)


def test_more_devices_never_take_longer_and_small_work_is_bound_by_the_host():
    dp = np.array([1, 2, 4, 8])
    large = gpt(8192, 64, 8, 2048)
    assert (np.diff(seconds(TrainingJob(large, 2048, 64, dp=dp)).total) < 0).all()
    tp = seconds(TrainingJob(large, 2048, 64, micro_batch=4, tp=dp)).total
    assert (np.diff(tp) < 0).all()
    assert tp[0] / tp[-1] < 8
    # A tiny layer takes what its kernels take to launch, however it is cut (measured: tp 8 is slower than tp 1).
    small = seconds(replace(JOB, model=gpt(512, 16, 24, 1024), micro_batch=1, tp=dp)).total
    assert small[-1] > 0.9 * small[0]


def test_context_parallelism_divides_long_attention():
    job = TrainingJob(read("Qwen/Qwen3-8B"), 131072, 8, tp=8)
    one, four = seconds(job, H100), seconds(replace(job, cp=4), H100)
    assert 3.0 < one.total / four.total < 4.2
    assert training_ledger(replace(job, cp=4)).activations == pytest.approx(training_ledger(job).activations / 4)


def test_model_flops_are_those_of_the_papers():
    """Narayanan et al. 2021, equation 3 without recomputation: 72 B s l h^2 (1 + s / 6h + V / 12 l h)."""
    layers, h, s, vocab = 96, 12288, 2048, 51200
    job = TrainingJob(gpt(h, 96, layers, s, vocab), s, 1536)
    by_paper = 72 * 1536 * s * layers * h**2 * (1 + s / (6 * h) + vocab / (12 * layers * h))
    assert model_flops(job) == pytest.approx(by_paper)


def test_no_step_is_faster_than_the_peak_allows():
    tp, pp, micro = (np.array(x) for x in ([1, 2, 4, 8], [1, 2, 4], [1, 2, 8]))
    job = TrainingJob(read("Qwen/Qwen3-32B"), 4096, 64, micro_batch=micro, tp=tp[:, None, None], pp=pp[:, None], zero=1)
    for name in ("a100_sxm", "h100_sxm", "b200_sxm", "l40s"):
        step = seconds(job, node_of(name))
        assert step.total.shape == (4, 3, 3)
        assert np.isfinite(step.total).all()
        assert (step.mfu > 0.02).all()
        assert (step.mfu < 0.9).all()
        assert all((np.asarray(getattr(step, part)) >= 0).all() for part in step.PARTS)


def test_arrays_agree_with_one_job_at_a_time():
    rng = np.random.default_rng(0)
    job = TrainingJob(
        GPT, 1024, 128, 2 ** rng.integers(0, 4, 50), tp=2 ** rng.integers(0, 4, 50), pp=2 ** rng.integers(0, 3, 50),
        dp=2 ** rng.integers(0, 3, 50), zero=rng.integers(0, 4, 50), recompute=rng.integers(0, 3, 50),
        sequence_parallel=rng.integers(0, 2, 50).astype(bool), flash=rng.integers(0, 2, 50).astype(bool),
    )  # fmt: skip
    together, memory = seconds(job).total, training_ledger(job).used
    for i in range(0, 50, 7):
        assert seconds(job.at((i,))).total == pytest.approx(together[i])
        assert training_ledger(job.at((i,))).used == pytest.approx(memory[i])


def test_groups_that_leave_the_node_pay_for_the_network():
    tp = TrainingJob(gpt(16384, 128, 16, 4096), 4096, 64, tp=np.array([4, 8, 16]))
    four, eight, sixteen = seconds(tp, H100).tensor_parallel
    assert four < eight < sixteen / 1.2
    # Two replicas side by side, and in two nodes: eight tensor ranks lie between them.
    dp = TrainingJob(GPT, 1024, 64, tp=np.array([1, 8]), dp=2, overlap=False)
    near, far = seconds(dp, H100).gradients
    assert far > 1.5 * near / 8


def test_devices_beyond_a_node_without_a_network_are_refused():
    alone = replace(A100, network=None)
    with pytest.raises(UsageError, match="at most 8"):
        train_step(training_platform(alone), TrainingJob(GPT, 1024, 64, dp=16), alone)


def test_evidence_weakens_beyond_what_was_fitted():
    table_like = replace(JOB, tp=2, dp=2)
    assert seconds(table_like).evidence == "measured"
    assert seconds(replace(table_like, recompute=2)).evidence == "transferred"
    assert seconds(table_like, H100).evidence == "transferred"
    assert seconds(table_like, node_of("mi300x")).evidence == "datasheet"
    both = seconds(replace(table_like, dp=np.array([2, 16])))
    assert both.evidence.tolist() == ["measured", "transferred"]
    width = np.log(both.high / both.low)
    assert width[1] > 2 * width[0] > 0


def test_intervals_are_conformal_quantiles():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        low, high = intervals(rng.normal(0, 0.1, 60))["measured"]
        fresh = np.exp(rng.normal(0, 0.1, 50))
        inside.append(((fresh >= low) & (fresh <= high)).mean())
    assert 0.80 <= np.mean(inside) <= 0.84


def test_an_engine_that_was_not_calibrated_is_refused():
    with pytest.raises(UnknownName, match="megatron"):
        training_engine("magatron")


# Tables.

COLUMNS = ("# GPUs", "global batch", "micro batch", "hidden size", "attention heads", "# layers", "sequence length")
LAYOUT = ("tensor parallelism", "data parallelism", "pipeline parallelism")


def a_table(*rows):
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate((*COLUMNS, *LAYOUT))}


def test_rows_that_cannot_run_say_why_and_others_are_answered():
    table = a_table(
        (8, 32, 2, 2048, 16, 24, 1024, 2, 2, 2),
        (8, 32, 2, 2048, 16, 24, 1024, 2, 2, 4),
        (8, 30, 4, 2048, 16, 24, 1024, 2, 2, 2),
        (8, 32, 2, 2000, 16.5, 24, 1024, 2, 2, 2),
        (8, 32, 0, 2048, 16, 24, 1024, 2, 2, 2),
        (2, 32, 2, 2050, 16, 24, 1024, 2, 1, 1),
        (10, 32, 2, 2048, 16, 24, 1024, 2, 1, 5),
    )
    said = predict_training_table(table)
    assert said["error"][0] == ""
    assert np.isfinite(said["seconds"]).tolist() == [True] + [False] * 6
    expected = ("tp x dp x pp x cp is 16", "global batch 30", "attention heads is 16.5", "micro batch is 0",
                "hidden size 2050", "24 layers")  # fmt: skip
    assert all(words in error for words, error in zip(expected, said["error"][1:], strict=True)), said["error"]
    assert said["seconds_low"][0] < said["seconds"][0] < said["seconds_high"][0]
    with pytest.raises(UsageError, match="# layers"):
        predict_training_table({n: c for n, c in table.items() if n != "# layers"})


def test_the_answer_is_never_read():
    table = a_table((8, 32, 2, 2048, 16, 24, 1024, 2, 2, 2))
    told = predict_training_table(table | {"iteration time (ms)": np.array([1.0])})
    assert told["seconds"] == predict_training_table(table)["seconds"]
    assert "iteration time (ms)" not in told


@pytest.fixture(scope="module")
def table():
    return read_table(MEASURED)


@measured
def test_measured_iterations_are_met_by_what_ships(table):
    said = predict_training_table(table)
    ratio = said["seconds"] / (table["iteration time (ms)"] / 1e3)
    assert np.median(np.abs(ratio - 1)) < 0.05
    assert abs(np.median(ratio) - 1) < 0.02
    inside = (ratio * said["seconds_low"] / said["seconds"] <= 1) & (
        ratio * said["seconds_high"] / said["seconds"] >= 1
    )
    assert inside.mean() > 0.75


@measured
@pytest.mark.parametrize("by", ["model", "devices", pytest.param("layout", marks=pytest.mark.slow)])
def test_left_out_configurations_are_within_6_percent(table, by):
    """Issue 3: at most 6 % median; the roofline with two constants, fitted alike, stays above 20 %."""
    calibrate = pytest.importorskip("nearpeak.calibrate.training")
    truth = table["iteration time (ms)"] / 1e3
    assert np.median(np.abs(calibrate.left_out(table, by) / truth - 1)) < 0.05
    assert np.median(np.abs(calibrate.roofline(table, by) / truth - 1)) > 0.15


@measured
def test_intervals_cover_what_was_left_out(table):
    """Each model's rows against the quantiles of the others' residuals."""
    calibrate = pytest.importorskip("nearpeak.calibrate.training")
    truth = table["iteration time (ms)"] / 1e3
    logs = np.log(truth / calibrate.left_out(table, "model"))
    keys = table["hidden size"] * 1000 + table["# layers"]
    inside = np.zeros(logs.size, bool)
    for key in np.unique(keys):
        low, high = np.log(intervals(logs[keys != key])["measured"])
        inside[keys == key] = (logs[keys == key] >= low) & (logs[keys == key] <= high)
    assert 0.75 <= inside.mean() <= 0.85


def test_wrong_units_and_too_few_rows_are_refused():
    calibrate = pytest.importorskip("nearpeak.calibrate.training")
    table = a_table((8, 32, 2, 2048, 16, 24, 1024, 2, 2, 2))
    with pytest.raises(UsageError, match="peak allows"):
        calibrate.fit_training(table | {"iteration time (ms)": np.array([0.2])})
    with pytest.raises(Exception, match="too few"):
        calibrate.fit_training(table | {"iteration time (ms)": np.array([200.0])})
    with pytest.raises(UsageError, match="iteration time"):
        calibrate.fit_training(table)
