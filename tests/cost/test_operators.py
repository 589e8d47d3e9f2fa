"""Operators: physics that holds whatever the calibration says, and properties of the calibrated times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearpeak.cost import operators as op
from nearpeak.cost.attention import causal_pairs
from nearpeak.cost.calibration import Calibration
from nearpeak.cost.operators import expert_loads, gemm_work, tiled_area
from nearpeak.cost.platform import Platform, platform
from nearpeak.errors import UnknownName, UsageError
from nearpeak.formats import BYTES, FORMATS, code
from nearpeak.hardware import device, link

GPUS = ("a100_sxm", "h100_sxm", "b200_sxm", "rtx_pro_6000_server", "h200_sxm", "l40s")
PHYSICS = Calibration("none", {})
STEPS = 0.85
"""Libraries choose kernels by shape, so that measured times (and what is fitted to them) step down here and there."""


def on(gpu: str, engine: str = "vllm", calibration: Calibration | None = None) -> Platform:
    found = device(gpu)
    return platform(found, link(found.scale_up or found.host_link), engine, calibration)


sizes = st.integers(0, 15).map(lambda e: 2.0**e)
gpus = st.sampled_from(GPUS)


@given(gpus, sizes, sizes, sizes, st.sampled_from(range(len(FORMATS))))
@settings(max_examples=150, deadline=None)
def test_a_product_is_never_faster_than_the_roofline(gpu, m, n, k, fmt):
    p = on(gpu)
    time = float(op.gemm(p, m, n, k, fmt))
    assert np.isfinite(time)
    assert time >= 2 * m * n * k / float(p.rate(np.asarray(fmt)))
    cached = p.cache.bandwidth if p.cache else 8 * p.device.memory_bandwidth
    assert time >= n * k * BYTES[fmt] / max(cached, p.device.memory_bandwidth)


@given(gpus, sizes, sizes, sizes, st.sampled_from(("m", "n", "k")))
@settings(max_examples=150, deadline=None)
def test_the_physics_of_a_product_grows_with_every_size(gpu, m, n, k, which):
    p = on(gpu, calibration=PHYSICS)
    more = {"m": m, "n": n, "k": k}
    more[which] += 1
    assert op.gemm(p, **more) >= op.gemm(p, m, n, k) * (1 - 1e-12)


@pytest.mark.parametrize("gpu", GPUS)
def test_calibrated_times_fall_by_no_more_than_kernels_step_as_sizes_grow(gpu):
    """Over whole grids: measured kernels step, and the calibration follows them; the physics below does not."""
    p = on(gpu)
    m, n, k = np.meshgrid(*(2.0 ** np.arange(a, b, 0.5) for a, b in ((3, 14.1), (8, 15.1), (8, 14.1))), indexing="ij")
    product = op.gemm(p, m, n, k)
    for larger in ((4 * m, n, k), (m, 4 * n, k), (m, n, 4 * k)):
        assert (op.gemm(p, *larger) > STEPS * product).all()
    batch, context = np.meshgrid(2.0 ** np.arange(0, 8.1, 0.25), 2.0 ** np.arange(4, 16.1, 0.25), indexing="ij")
    for group in (1, 4, 8):
        for dim in (64, 128):
            decode = op.attention_decode(p, batch, context, 8 * group, 8, dim)
            assert (op.attention_decode(p, batch, 8 * context, 8 * group, 8, dim) > STEPS * decode).all()
    prompts, isl = np.floor(np.meshgrid(2.0 ** np.arange(0, 5.1, 0.25), 2.0 ** np.arange(4, 13.1, 0.25), indexing="ij"))
    for window in (0, 1024):
        prefill = op.attention_prefill(p, prompts, isl, 32, 8, 128, window)
        assert (op.attention_prefill(p, prompts, 4 * isl, 32, 8, 128, window) > STEPS * prefill).all()
    tokens = np.floor(2.0 ** np.arange(0, 13.1, 0.25))
    for tp in (1, 2, 8):
        for ep in (1, 8):
            experts = op.moe(p, tokens, 4096, 1536, 8, 128, tp, ep)
            assert (op.moe(p, 16 * tokens, 4096, 1536, 8, 128, tp, ep) > STEPS * experts).all()


def test_large_products_reach_most_of_the_peak_and_skinny_ones_most_of_the_bandwidth():
    p = on("h100_sxm")
    large = 2 * 8192.0**3 / p.device.rates["bf16"] / op.gemm(p, 8192, 8192, 8192)
    assert 0.55 < large < 0.95
    skinny = 2 * 8192.0 * 28672 / p.device.memory_bandwidth / op.gemm(p, 4, 8192, 28672)
    assert 0.6 < skinny < 1.0


def test_fp8_products_are_faster_where_the_device_multiplies_them_and_weights_are_widened_where_not():
    hopper, ampere = on("h100_sxm"), on("a100_sxm")
    assert op.gemm(hopper, 8192, 8192, 8192, code("fp8")) < 0.75 * op.gemm(hopper, 8192, 8192, 8192)
    wide = gemm_work(ampere, *np.array([8192.0] * 3), np.asarray(code("fp8")))
    assert wide.compute == gemm_work(ampere, *np.array([8192.0] * 3), np.asarray(code("bf16"))).compute
    assert wide.traffic < gemm_work(ampere, *np.array([8192.0] * 3), np.asarray(code("bf16"))).traffic


def test_tiled_area_counts_whole_waves_of_whole_tiles():
    one_wave = tiled_area(np.asarray(256.0), np.asarray(128.0 * 100), 100.0)
    assert one_wave == 256 * 128 * 100
    assert tiled_area(np.asarray(256.0), np.asarray(128.0 * 101), 100.0) > 1.3 * one_wave
    padded = tiled_area(np.asarray(1.0), np.asarray(64.0), 1.0)
    assert padded >= 64 * 64


@pytest.mark.parametrize(
    ("isl", "prefix", "window"), [(7, 0, 0), (7, 5, 0), (7, 0, 3), (7, 5, 3), (7, 2, 4), (3, 0, 9)]
)
def test_causal_pairs_are_what_a_mask_counts(isl, prefix, window):
    query, key = np.arange(isl)[:, None] + prefix, np.arange(isl + prefix)[None, :]
    seen = (key <= query) & ((key > query - window) if window else True)
    assert causal_pairs(*(np.asarray(float(x)) for x in (isl, prefix, window))) == seen.sum()


@given(gpus, st.floats(0, 8), st.floats(4, 16), st.sampled_from((1, 4, 8)), st.sampled_from((64, 128)))
@settings(max_examples=100, deadline=None)
def test_decoding_attention_reads_the_cache_at_best_at_full_bandwidth(gpu, batch, context, group, dim):
    p, b, c = on(gpu), 2.0**batch, 2.0**context
    time = float(op.attention_decode(p, b, c, 8 * group, 8, dim))
    cached = p.cache.bandwidth if p.cache else 8 * p.device.memory_bandwidth
    assert np.isfinite(time)
    assert time >= b * c * 8 * 2 * dim * 2 / max(cached, p.device.memory_bandwidth)
    bare = on(gpu, calibration=PHYSICS)
    assert op.attention_decode(bare, b, c + 1, 8 * group, 8, dim) >= op.attention_decode(bare, b, c, 8 * group, 8, dim)


@given(gpus, st.floats(0, 5), st.floats(4, 13), st.sampled_from((0, 1024)))
@settings(max_examples=100, deadline=None)
def test_prefilling_attention_grows_with_the_prompt_and_stays_under_the_peak(gpu, batch, isl, window):
    p, b, n = on(gpu), np.floor(2.0**batch), np.floor(2.0**isl)
    time = float(op.attention_prefill(p, b, n, 32, 8, 128, window))
    flops = 4 * 128 * 32 * b * causal_pairs(n, np.zeros(()), np.asarray(float(window)))
    assert time >= flops / p.device.rates["bf16"]
    bare = on(gpu, calibration=PHYSICS)
    assert op.attention_prefill(bare, b, n + 1, 32, 8, 128) >= op.attention_prefill(bare, b, n, 32, 8, 128) * (1 - 1e-9)


def test_a_window_saves_and_a_cached_prefix_costs():
    p = on("h100_sxm")
    full = op.attention_prefill(p, 1, 16384, 32, 8, 128)
    assert op.attention_prefill(p, 1, 16384, 32, 8, 128, window=1024) < 0.5 * full
    assert op.attention_prefill(p, 1, 16384, 32, 8, 128, prefix=65536) > 2 * full
    full = op.attention_decode(p, 64, 32768, 32, 8, 128)
    assert op.attention_decode(p, 64, 32768, 32, 8, 128, window=1024) < 0.3 * full


def test_equal_loads_meet_every_expert_once_there_are_tokens_for_all():
    numbers = (np.asarray(float(x)) for x in (4096, 8, 256, 8, 0))
    rows, met, padded = expert_loads(*numbers)
    assert rows == pytest.approx(4096 * 8 / 8)
    assert met == pytest.approx(32)
    assert padded == pytest.approx(rows)


def test_skewed_loads_crowd_the_busiest_device():
    few = [np.asarray(float(x)) for x in (4096, 8, 256, 8)]
    even, skewed = (expert_loads(*few, np.asarray(s)) for s in (0.0, 1.2))
    assert skewed[0] > 1.3 * even[0]
    assert skewed[1] <= even[1]


def test_without_expert_parallelism_every_row_is_on_the_one_device():
    rows, _, _ = expert_loads(*(np.asarray(float(x)) for x in (8192, 8, 256, 1, 1.2)))
    assert rows == pytest.approx(8192 * 8, rel=0.1)


@given(gpus, st.floats(0, 13), st.sampled_from((1, 2, 8)), st.sampled_from((1, 8)))
@settings(max_examples=60, deadline=None)
def test_experts_take_some_time_and_more_with_more_tokens(gpu, tokens, tp, ep):
    p, t = on(gpu), np.floor(2.0**tokens)
    time = float(op.moe(p, t, 4096, 1536, 8, 128, tp, ep))
    assert np.isfinite(time)
    assert time > 0
    bare = on(gpu, calibration=PHYSICS)
    twice, once = (op.moe(bare, x, 4096, 1536, 8, 128, tp, ep, skew=0) for x in (2 * t, t))
    assert twice >= once * (1 - 1e-9)


def test_collectives_cost_nothing_alone_and_in_proportion_when_large():
    for gpu in GPUS:
        p = on(gpu)
        for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"):
            assert op.collective(p, name, 1e9, 1) == 0
            assert op.collective(p, name, 0, 8) == 0
            once, twice = op.collective(p, name, np.array([2e9, 4e9]), 8)
            assert twice / once == pytest.approx(2, rel=0.05)
            assert once >= (1 if name == "send_recv" else 7 / 8) * 2e9 / p.link.bandwidth


def test_collectives_need_a_known_name_and_a_link():
    p = on("h100_sxm")
    with pytest.raises(UnknownName, match="all_reduce"):
        op.collective(p, "allreduce", 1e6, 8)
    alone = platform(p.device, None)
    assert op.collective(alone, "all_reduce", 1e6, 1) == 0
    with pytest.raises(UsageError, match="link"):
        op.collective(alone, "all_reduce", 1e6, 2)


def test_a_call_over_arrays_is_the_calls_over_its_elements():
    p, generator = on("h100_sxm"), np.random.default_rng(0)
    m, n, k = np.floor(2 ** generator.uniform(0, 14, (3, 20)))
    fmt = generator.integers(0, len(FORMATS), 20)
    each = [op.gemm(p, *shape, f) for *shape, f in zip(m, n, k, fmt, strict=True)]
    np.testing.assert_allclose(op.gemm(p, m, n, k, fmt), each, rtol=1e-12)
    wide = op.gemm(p, m[:, None], n, k, fmt)
    assert wide.shape == (20, 20)
    np.testing.assert_allclose(np.diag(wide), each, rtol=1e-12)
    each = [op.moe(p, t, 4096, 1536, 8, 128, 1, 8, f) for t, f in zip(m, fmt, strict=True)]
    np.testing.assert_allclose(op.moe(p, m, 4096, 1536, 8, 128, 1, 8, fmt), each, rtol=1e-12)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_operator_has_a_positive_finite_time(gpu):
    p, t = on(gpu), np.array([1.0, 32.0, 4096.0])
    times = [
        op.mla_prefill(p, 1, t, 16),
        op.mla_decode(p, t, 4096, 16),
        op.mla_bmm(p, t, 16),
        op.sampling(p, t, 128000),
        op.elementwise(p, t),
        op.linear_attention(p, "gdn", "context", 1, t, 16, 128, 32, 128),
        op.linear_attention(p, "mamba2", "generation", t, t, 8, 128, 128, 64),
    ]
    for time in times:
        assert np.all(np.isfinite(time))
        assert np.all(time > 0)
        assert time[-1] > time[0]


def test_evidence_is_as_strong_as_what_was_measured():
    assert op.evidence(on("h100_sxm"), "gemm", code("bf16")) == "measured"
    assert op.evidence(on("h100_sxm", "unheard_of"), "gemm", code("bf16")) == "transferred"
    assert op.evidence(on("h200_sxm"), "gemm", code("bf16")) == "transferred"
    assert op.evidence(on("h100_sxm", calibration=PHYSICS), "gemm", code("bf16")) == "datasheet"
    low, high = op.interval(on("h100_sxm"), "gemm", code("bf16"))
    wide_low, wide_high = op.interval(on("h200_sxm"), "gemm", code("bf16"))
    assert wide_low < low < 1 < high < wide_high


def test_formats_that_a_device_widens_run_like_16_bit_products_with_fewer_bytes():
    for gpu in ("h100_sxm", "h200_sxm", "l40s"):
        p = on(gpu)
        assert op.gemm(p, 8192, 8192, 8192, code("nvfp4")) == pytest.approx(op.gemm(p, 8192, 8192, 8192), rel=0.35)
        assert op.gemm(p, 4, 8192, 28672, code("nvfp4")) < 0.6 * op.gemm(p, 4, 8192, 28672)


def test_a_device_like_none_that_was_measured_rests_on_its_datasheet():
    assert op.evidence(platform(device("mi300x"), None), "gemm", code("bf16")) == "datasheet"


def test_a_device_without_any_half_precision_or_fp32_rate_is_refused():
    from dataclasses import replace

    bare = replace(device("h100_sxm"), rates={"fp64": 1e12})
    with pytest.raises(UsageError, match="no rate"):
        platform(bare, None)


def test_a_format_that_a_device_cannot_multiply_is_refused_by_name():
    p = platform(device("tpu_v5e"), None)
    assert op.gemm(p, 128, 8192, 8192) > 0
    with pytest.raises(UsageError, match="fp32"):
        op.gemm(p, 128, 8192, 8192, [code("bf16"), code("fp32")])
