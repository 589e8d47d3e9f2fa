import shutil

import numpy as np
import pytest

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import device
from nearpeak.measure import blocked_gemm
from nearpeak.measure.blocked_gemm import DTYPES, multiply, tile_seconds, watts

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which compiles the blocked product")


@needs_compiler
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("tile", [(8, 8, 8), (7, 16, 128), (128, 5, 3)])
def test_tiles_that_do_not_divide_the_product_still_give_it(dtype, tile):
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal(s).astype(DTYPES[dtype]) for s in ((37, 61), (61, 29)))
    out = np.full((37, 29), np.nan, DTYPES[dtype])
    multiply(a, b, out, tile)
    assert out == pytest.approx(a @ b, abs=1e-4 if dtype == "fp32" else 1e-12)


@needs_compiler
def test_a_product_of_64_times_the_work_takes_longer():
    tiles = [(16, 64, 16), (64, 64, 64)]
    small, large = (tile_seconds(s, s, s, "fp32", tiles, 3) for s in (32, 128))
    assert small.shape == (2,)
    assert (large > 8 * small).all()


def test_watts_rise_with_utilization_and_stay_within_the_device():
    gpu = device("h100_sxm")
    least = 2 * 512**3 / gpu.rates["fp32"]
    slow, fast = watts(gpu, 512, 512, 512, "fp32", np.array([50, 1.2]) * least)
    assert gpu.tdp * 0.05 < slow < fast <= gpu.tdp * 1.05


def test_what_cannot_run_is_refused(monkeypatch):
    a = np.ones((4, 4), np.float32)
    with pytest.raises(UsageError, match="float16"):
        multiply(a.astype(np.float16), a, a.copy(), (8, 8, 8))
    with pytest.raises(UsageError, match="at least 1"):
        multiply(a, a, a.copy(), (8, 0, 8))
    with pytest.raises(UsageError, match="row-major"):
        multiply(a, a[:2], a.copy(), (8, 8, 8))
    with pytest.raises(UsageError, match="fp32, fp64"):
        tile_seconds(4, 4, 4, "bf16", [(8, 8, 8)])
    blocked_gemm.library.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NearpeakError, match=r"no g\+\+"):
        tile_seconds(4, 4, 4, "fp32", [(8, 8, 8)])
    blocked_gemm.library.cache_clear()
