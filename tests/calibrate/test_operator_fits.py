"""Fits of operators on times made from known laws: what is found again, what sharing buys, what transfers."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="fits need nearpeak[calibrate]")

from nearpeak.calibrate.operators import Layout, calibrate, error, fit, gpu_out, in_common
from nearpeak.calibrate.samples import Sample, concatenated
from nearpeak.cost.calibration import Axis
from nearpeak.hardware import device

LAYOUT = Layout((Axis("x", 0, 0, 2, 6), Axis("y", 1, 0, 2, 6)), ((0, 1),), 0.1, shared=True)


def sample(rows, rng, gpu="h100_sxm", engine="vllm", low=0.0, high=10.0, law=None):
    """Times of a made kernel: traffic at 0.6 of the bandwidth, and a bump that depends on both sizes."""
    x, y = rng.uniform(low, high, rows), rng.uniform(0, 10, rows)
    traffic = 1e-6 * 2 ** (x / 2 + y / 2)
    bump = np.sin(x / 2) * np.cos(y / 3) * 0.5 if law is None else law(x, y)
    text = {name: np.full(rows, value, object) for name, value in
            (("gpu", gpu), ("engine", engine), ("kernel", "k"), ("variant", "bf16"))}  # fmt: skip
    zero = np.zeros(rows)
    return Sample(
        **text, site=rng.integers(50, size=rows), row=np.arange(rows), compute=zero + 1e-9, traffic=traffic,
        floor=zero + 1e-12, coordinates=(x, y), seconds=(2e-6 + traffic / 0.6) * np.exp(bump),
    )  # fmt: skip


def test_a_smooth_law_is_found_again():
    rng = np.random.default_rng(0)
    found = fit(LAYOUT, sample(2000, rng))
    new = sample(500, rng)
    assert error(found.log_seconds(LAYOUT, new) - np.log(new.seconds)) < 3


def test_an_entry_with_few_sizes_gains_from_what_all_entries_have_in_common():
    rng = np.random.default_rng(1)
    rich, poor, new = sample(3000, rng), sample(300, rng, low=0, high=3), sample(500, rng, low=5, high=10)
    start = in_common(LAYOUT, concatenated([rich, poor]), [np.arange(3000), np.arange(3000, 3300)])
    alone = error(fit(LAYOUT, poor).log_seconds(LAYOUT, new) - np.log(new.seconds))
    helped = error(fit(LAYOUT, poor, start).log_seconds(LAYOUT, new) - np.log(new.seconds))
    assert helped < alone / 2


def of_gemm(rows, rng, gpu):
    """Products that take 7,000 cycles to launch and 0.8 of the peaks on any device."""
    m, n, k = (2.0 ** rng.uniform(low, high, rows) for low, high in ((0, 12), (8, 13), (8, 13)))
    d = device(gpu)
    compute, traffic = 2 * m * n * k / d.rates["bf16"], 2 * (m * k + k * n + m * n) / d.memory_bandwidth
    took = 7000 / d.clock + (compute**4 + traffic**4) ** 0.25 / 0.8
    text = {name: np.full(rows, value, object) for name, value in
            (("gpu", gpu), ("engine", "vllm"), ("kernel", ""), ("variant", "bf16"))}  # fmt: skip
    coordinates = tuple(np.log2(size) for size in (m, n, k))
    return Sample(
        **text, site=rng.integers(50, size=rows), row=np.arange(rows), compute=compute, traffic=traffic,
        floor=took / 10, coordinates=coordinates, seconds=took * np.exp(rng.normal(0, 0.02, rows)),
    )  # fmt: skip


def test_a_law_in_cycles_and_peaks_transfers_to_a_device_that_was_left_out():
    rng = np.random.default_rng(2)
    gpus = ("a100_sxm", "h100_sxm", "b200_sxm", "rtx_pro_6000_server")
    whole = concatenated([of_gemm(600, rng, gpu) for gpu in gpus])
    found, scores = calibrate("gemm", whole)
    for gpu in gpus:
        here = whole.gpu == gpu
        assert error(scores.site[here]) < 4
        assert error(scores.device[here]) < 8
    assert found.transferred[0] < 1 < found.transferred[1]
    assert found.datasheet[0] <= found.transferred[0]
    assert found.datasheet[1] >= found.transferred[1]


def test_nothing_is_said_of_transfers_where_one_device_was_measured():
    whole = of_gemm(400, np.random.default_rng(3), "h100_sxm")
    found, scores = calibrate("gemm", whole)
    assert np.isnan(scores.device).all()
    assert np.isnan(gpu_out("gemm", whole, found)).all()
    assert found.transferred == found.datasheet == (0.25, 4.0)
