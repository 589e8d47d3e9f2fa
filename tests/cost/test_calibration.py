"""The calibration: what is read is checked, corrections interpolate, and the shipped file is sound."""

import msgspec
import numpy as np
import pytest

from nearpeak.cost.calibration import (
    Axis,
    Calibration,
    Entry,
    OperatorCalibration,
    blend,
    correction,
    decode,
    join,
    kernel,
    shipped,
)
from nearpeak.cost.platform import Work, evidence, platform, seconds
from nearpeak.errors import NearpeakError
from nearpeak.hardware import device, link

AXES = (Axis("x", 0, 0, 1, 4), Axis("y", 1, 2, 2, 3))


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


def test_corrections_of_several_tables_add_and_rows_are_kept_apart():
    rng = np.random.default_rng(1)
    points = tuple(rng.uniform(-2, 9, (2, 50)))
    both, only = rng.normal(size=24), rng.normal(size=8)
    row = rng.integers(2, size=50)
    found = correction(AXES, ((0, 1), (0,)), (both, only), row, points)
    for i in range(50):
        x, y = np.clip(points[0][i], 0, 3), (np.clip(points[1][i], 2, 6) - 2) / 2
        grid = both.reshape(2, 4, 3)[row[i]]
        along = [np.interp(x, range(4), grid[:, j]) for j in range(3)]
        expected = np.interp(y, range(3), along) + np.interp(x, range(4), only.reshape(2, 4)[row[i]])
        assert found[i] == pytest.approx(expected)


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
    ("gpu", "engine", "found", "kind"),
    [
        ("h100_sxm", "vllm", 0.5, "measured"),
        ("h100_sxm", "vllm/a_kernel_never_timed", 0.5, "measured"),
        ("h100_sxm", "vllm/triton", 0.3, "measured"),
        ("h100_sxm", "an_engine_never_timed", 0.2, "transferred"),  # the one with the most rows
        ("h200_sxm", "vllm", 0.5, "transferred"),
        ("rtx_pro_6000_server", "vllm", 0.5, "datasheet"),  # no other GDDR card was measured
        ("mi300x", "vllm", 0.5, "datasheet"),
    ],
)
def test_constants_are_looked_up_from_the_particular_to_the_general(gpu, engine, found, kind):
    entry = one().operators["gemm"].entries[0]
    entries = tuple(
        msgspec.structs.replace(entry, engine=e, compute=c, rows=rows)
        for e, c, rows in (("vllm", 0.5, 100), ("vllm/triton", 0.3, 900), ("sglang", 0.2, 500))
    )
    operator = msgspec.structs.replace(one().operators["gemm"], entries=entries)
    p = platform(device(gpu), None, engine, Calibration("test", {"gemm": operator}))
    launch = 1e-6 * device("h100_sxm").clock / device(gpu).clock
    assert seconds(p, at(0, 2)) == pytest.approx(launch + 1e-3 / found)
    assert evidence(p, "gemm") == kind


def test_a_device_never_measured_is_a_mean_of_those_that_were_and_leans_to_its_own_kind():
    entry = one().operators["gemm"].entries[0]
    measured = {"a100_sxm": 0.9, "h100_sxm": 0.6, "b200_sxm": 0.3, "rtx_pro_6000_server": 0.1}
    entries = tuple(
        msgspec.structs.replace(entry, gpu=g, compute=c, launch=7000 / device(g).clock) for g, c in measured.items()
    )
    calibration = Calibration("test", {"gemm": msgspec.structs.replace(one().operators["gemm"], entries=entries)})

    def reached(gpu: str) -> float:
        """The share of the peak that the blend took."""
        p = platform(device(gpu), None, "vllm", calibration)
        return 1e-3 / float(seconds(p, at(0, 2)) - 7000 / device(gpu).clock)

    assert reached("h200_sxm") == pytest.approx(0.6, abs=0.05)
    assert reached("b300_sxm") == pytest.approx(0.3, abs=0.05)
    assert reached("l40s") < 0.2
    assert 0.3 < reached("mi300x") < 0.9


def test_a_blend_of_one_device_with_itself_is_that_device():
    entry = one().operators["gemm"].entries[0]
    alone, twice = kernel(entry), blend([entry, entry], [1e9, 1e9], [1.0, 3.0], 1e9)
    np.testing.assert_allclose(twice[:3], alone[:3])
    np.testing.assert_allclose(twice.tables[0], alone.tables[0])
    assert blend([entry], [1e9], [1.0], 2e9).launch == pytest.approx(entry.launch / 2)


def test_the_shipped_calibration_is_small_and_covers_the_operators():
    known = shipped().operators
    assert {"gemm", "attention_prefill", "attention_decode", "moe", "all_reduce"} <= known.keys()
    for operator in known.values():
        assert operator.transferred[0] < 1 < operator.transferred[1]
        for entry in operator.entries:
            assert device(entry.gpu).name == entry.gpu
            assert entry.factors[0] <= 1.05
            assert entry.factors[1] >= 0.95


def test_every_measured_device_joins_its_peers():
    for entry in shipped().operators["all_reduce"].entries:
        found = device(entry.gpu)
        assert link(found.scale_up or found.host_link).bandwidth > 0
