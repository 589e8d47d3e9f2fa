"""The throughput knee and replicas at it, against a simulation of engines that share a device."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.bounds import topics
from nearpeak.bounds.knee import advise, attention_intensity, knee_batch, matrix_intensity, pace, replicas_rate
from nearpeak.cost import decode, ledger, platform_of
from nearpeak.cost.engine import engine
from nearpeak.cost.memory import CONTEXT
from nearpeak.cost.operators import STREAMED
from nearpeak.errors import UsageError
from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture, Attention, Block, Dense, parameters

OPT = Architecture(
    "facebook/opt-1.3b", "opt", hidden=2048, vocab=50272, context=2048, tied=True, tables=2050 * 2048, extra=2 * 2048,
    blocks=(
        Block(Attention(32, 32, 64, 64, bias=True, out_bias=True), Dense(8192, gated=False, bias=True), 24, 4 * 2048),
    ),
)  # fmt: skip
SETUP = Setup(OPT, node_of("h100_sxm"), "vllm", 161, 338, Pool())


def simulate(setup, batch, replicas, seconds, seed):
    """Output tokens/s of ``replicas`` processes whose kernels share one device's bandwidth (fluid, event by event).

    A step is host time, then matrices, then attention, each with the share of bandwidth that it takes alone. Where the
    shares of what runs at once sum to more than streaming kernels reach, all slow down alike. A prompt's chunk is more
    matrices. Answers have random lengths; when one ends, the next request begins.
    """
    rng = np.random.default_rng(seed)
    at, host, device = platform_of(setup), engine(setup.engine), setup.node.device
    context = float(setup.isl) + float(setup.osl) / 2
    step = decode(at.in_graph(), setup, setup.decode, np.asarray(float(batch)), np.asarray(context)) * host.graph
    weights = 2.0 * parameters(OPT).active
    cached = 24 * 2 * 32 * 64 * 2.0
    dense = float(step.matrices + step.other)
    rate = device.rates["bf16"]
    whole = rng.uniform(0.8 * setup.osl, 1.2 * setup.osl, (replicas, batch))
    age = np.floor(rng.uniform(0, whole))
    phase, remaining, share = np.full(replicas, 2), rng.uniform(0, 1e-3, replicas), np.zeros(replicas)
    prompts, clock, made = np.zeros(replicas), 0.0, 0
    while clock < seconds:
        busy = share.sum()
        speed = np.where(share > 0, min(1.0, STREAMED / busy) if busy > 0 else 1.0, 1.0)
        took = (remaining / speed).min()
        clock += took
        remaining = remaining - took * speed
        for r in np.flatnonzero(remaining < 1e-12):
            phase[r] = (phase[r] + 1) % 3
            if phase[r] == 0:  # a step is over; the host prepares the next
                made += batch
                age[r] += 1
                over = age[r] >= whole[r]
                new = int(over.sum())
                whole[r][over] = rng.uniform(0.8 * setup.osl, 1.2 * setup.osl, new)
                age[r][over] = 0
                remaining[r], share[r] = host.step + host.sequence * batch + 1e-9, 0.0
                prompts[r] = new
            elif phase[r] == 1:
                extra = prompts[r] * setup.isl * weights / (0.5 * rate)
                remaining[r] = dense + extra
                share[r] = (weights / device.memory_bandwidth) / (dense + extra)
            else:
                tokens = batch * setup.isl + age[r].sum()
                remaining[r] = float(step.attention) * tokens / (batch * context)
                share[r] = tokens * cached / device.memory_bandwidth / remaining[r]
    return made / clock


def test_two_replicas_at_the_cap_beat_one_at_the_largest_batch_in_the_same_memory():
    found = advise(SETUP)
    assert found.found
    assert found.replicas >= 2
    one, cap = (ledger(replace(SETUP, decode=Pool(batch=b)), Pool(batch=b)) for b in (found.largest, found.cap))
    two = 2 * (cap.used - cap.reserved) + CONTEXT
    assert float(two) <= float(one.used - one.reserved)
    for seed in range(3):
        alone = simulate(SETUP, found.largest, 1, 8.0, seed)
        both = simulate(SETUP, found.cap, 2, 8.0, seed)
        assert both > 1.1 * alone
    assert found.overlapped > 1.1 * found.single
    assert alone == pytest.approx(found.single * 338, rel=0.1)
    assert both == pytest.approx(found.overlapped * 338, rel=0.1)


def test_past_the_knee_of_opt_on_h100_twice_the_batch_adds_under_a_tenth_and_memory_is_the_limit():
    found = advise(SETUP)
    assert 64 <= found.cap < found.largest
    past = np.arange(found.cap, 2 * found.largest, 16)
    now, doubled = pace(SETUP, past), pace(SETUP, 2 * past)
    assert (now.alone / doubled.alone < 1.10).all()
    assert (now.dram > 2 * now.arithmetic).all()
    half = found.cap // 2
    assert pace(SETUP, half).alone / pace(SETUP, found.cap).alone > 1.10
    assert found.freed > found.pool


def test_the_intensity_of_attention_does_not_grow_with_the_batch_but_that_of_matrices_does():
    # Each cached 16-bit value is multiplied and added once by the one head that it serves.
    assert float(attention_intensity(OPT, 330)) == pytest.approx(1.0)
    assert float(attention_intensity(OPT, 330, 1.0)) == pytest.approx(2.0)
    np.testing.assert_allclose(matrix_intensity(OPT, [1, 64, 512]), [1, 64, 512])


def test_the_closed_form_is_where_doubling_gains_what_was_asked():
    fixed, each, gain = np.array([1e-3, 5e-3]), 2e-5, np.array([[0.05], [0.1], [0.5]])
    batch = knee_batch(fixed, each, gain)
    assert batch.shape == (3, 2)
    rate, doubled = batch / (fixed + batch * each), 2 * batch / (fixed + 2 * batch * each)
    np.testing.assert_allclose(doubled / rate, np.broadcast_to(1 + gain, (3, 2)))


def test_one_replica_is_never_faster_than_its_kernels_and_several_never_than_memory():
    at = pace(SETUP, 2.0 ** np.arange(10))
    assert (at.kernels <= at.alone * (1 + 1e-9)).all()
    assert (np.maximum(at.dram, at.arithmetic) < at.kernels).all()
    assert (np.diff(at.alone) < 0).all()
    many = replicas_rate(at, 100)
    np.testing.assert_allclose(many, 1 / np.maximum(at.dram / STREAMED, at.arithmetic))


def test_a_model_that_memory_ends_before_its_knee_keeps_all_of_it():
    large = topics()["knee"].explain(
        model="Qwen/Qwen3-32B", gpu="h100_sxm", devices=1, isl=4000.0, osl=500.0, gain=0.1, kv="bf16", weights="bf16",
        engine="vllm",
    )  # fmt: skip
    assert large.figures["cap"] == large.figures["largest_batch"]
    assert large.figures["freed_memory"] == 0
    assert "before the knee" in large.says[0]


def test_nonsense_is_refused_by_name():
    with pytest.raises(UsageError, match="gain must be below 1"):
        knee_batch(1.0, 1.0, 1.5)
    with pytest.raises(UsageError, match="osl must be 2 or more"):
        pace(replace(SETUP, osl=1), 4)
    with pytest.raises(UsageError, match="does not fit"):
        advise(replace(SETUP, node=node_of("u280"), isl=1e6))
