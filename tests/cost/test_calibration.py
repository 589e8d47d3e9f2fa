"""The calibration: what is read is checked, corrections interpolate, and the shipped file is sound."""

import msgspec
import numpy as np
import pytest

from nearpeak.cost.calibration import Axis, Calibration, Entry, OperatorCalibration, corners, decode, join, shipped
from nearpeak.cost.platform import Work, evidence, platform, seconds
from nearpeak.errors import NearpeakError
from nearpeak.hardware import device, link

AXES = (Axis("x", 0, 1, 4), Axis("y", 2, 2, 3))


def one(table: bytes = bytes(range(12)), **changes: object) -> Calibration:
    fields = dict(
        gpu="h100_sxm",
        engine="vllm",
        variant="bf16",
        launch=1e-6,
        compute=0.5,
        traffic=0.5,
        tables=(table,),
        scale=0.01,
        factors=(0.9, 1.1),
        rows=100,
    )
    entry = Entry(**{**fields, **changes})
    return Calibration("test", {"gemm": OperatorCalibration(AXES, ((0, 1),), (0.8, 1.3), (0.5, 2.0), (entry,))})


def at(x: float, y: float) -> Work:
    zero = np.zeros(())
    return Work("gemm", np.zeros((), np.intp), np.asarray(1e-3), zero, zero, (np.asarray(x), np.asarray(y)))


def test_corrections_are_exact_at_knots_and_linear_between():
    p = platform(device("h100_sxm"), None, "vllm", one())
    base = 1e-6 + 2e-3
    assert seconds(p, at(2, 4)) == pytest.approx(base * np.exp(0.01 * (2 * 3 + 1)))
    assert seconds(p, at(2, 5)) == pytest.approx(base * np.exp(0.01 * (2 * 3 + 1.5)))
    assert seconds(p, at(2.5, 5)) == pytest.approx(base * np.exp(0.01 * (2.5 * 3 + 1.5)))


def test_corrections_stay_as_they_are_beyond_the_outermost_knots():
    p = platform(device("h100_sxm"), None, "vllm", one())
    assert seconds(p, at(99, 99)) == seconds(p, at(3, 6))
    assert seconds(p, at(-99, -99)) == seconds(p, at(0, 2))


def test_weights_around_a_point_sum_to_one():
    points = tuple(np.random.default_rng(1).uniform(-2, 9, (2, 50)))
    pieces = corners(AXES, (0, 1), points)
    assert len(pieces) == 4
    np.testing.assert_allclose(sum(w for _, w in pieces), 1)
    assert all(np.all((i >= 0) & (i < 12)) for i, _ in pieces)


def test_joined_times_are_at_least_the_longer_and_at_most_19_per_cent_more():
    a, b = np.random.default_rng(2).uniform(0, 1, (2, 100))
    both = join(a, b)
    assert np.all(both >= np.maximum(a, b) * (1 - 1e-12))
    assert np.all(both <= np.maximum(a, b) * 2**0.25 * (1 + 1e-12))


def test_a_calibration_survives_being_written_and_read():
    assert decode(msgspec.json.encode(one())) == one()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (b"{", "not a calibration"),
        (b'{"source": 3, "operators": {}}', "source"),
        (msgspec.json.encode(one(bytes(5))), "12"),
        (msgspec.json.encode(one(compute=0.0)), "positive"),
        (msgspec.json.encode(one(factors=(-1.0, 1.0))), "positive"),
    ],
)
def test_a_broken_calibration_is_refused_with_the_place(broken, complaint):
    with pytest.raises(NearpeakError, match=complaint):
        decode(broken)


@pytest.mark.parametrize(
    ("gpu", "engine", "found"),
    [
        ("h100_sxm", "vllm", 0.5),
        ("h100_sxm", "vllm/a_kernel_never_timed", 0.5),
        ("h100_sxm", "vllm/triton", 0.3),
        ("h100_sxm", "an_engine_never_timed", 0.2),  # the one with the most rows
        ("h200_sxm", "vllm", 0.5),  # the same architecture
        ("a100_sxm", "vllm", 0.5),  # the same maker and kind of memory
        ("rtx_pro_6000_server", "vllm", 0.1),
        ("mi300x", "vllm", 0.1),
    ],
)
def test_constants_are_looked_up_from_the_particular_to_the_general(gpu, engine, found):
    entry = one().operators["gemm"].entries[0]
    entries = tuple(
        msgspec.structs.replace(entry, gpu=g, engine=e, compute=c, rows=rows)
        for g, e, c, rows in (
            ("h100_sxm", "vllm", 0.5, 100), ("h100_sxm", "vllm/triton", 0.3, 900), ("h100_sxm", "sglang", 0.2, 500),
            ("*", "*", 0.1, 1500),
        )
    )  # fmt: skip
    operator = msgspec.structs.replace(one().operators["gemm"], entries=entries)
    p = platform(device(gpu), None, engine, Calibration("test", {"gemm": operator}))
    assert seconds(p, at(0, 2)) == pytest.approx(1e-6 + 1e-3 / found)
    exact = "measured" if gpu == "h100_sxm" and engine.startswith("vllm") else "transferred"
    assert evidence(p, "gemm") == ("datasheet" if found == 0.1 else exact)


def test_the_shipped_calibration_is_small_and_covers_the_operators():
    known = shipped().operators
    assert {"gemm", "attention_prefill", "attention_decode", "moe", "all_reduce"} <= known.keys()
    for operator in known.values():
        assert operator.transferred[0] < 1 < operator.transferred[1]
        for entry in operator.entries:
            assert entry.gpu == "*" or device(entry.gpu).name == entry.gpu
            assert entry.factors[0] <= 1.05
            assert entry.factors[1] >= 0.95


def test_every_measured_device_joins_its_peers():
    for entry in shipped().operators["all_reduce"].entries:
        if entry.gpu != "*":
            found = device(entry.gpu)
            assert link(found.scale_up or found.host_link).bandwidth > 0
