"""A matrix product in C++ by tiles of any size, compiled here and timed on one thread of this machine's CPU.

It is what ``calibrate.gemm_forest`` learns from on a machine without a GPU: a kernel whose time depends on its tile.
Watts are not measured: few CPUs let a process read its meter. ``watts`` answers the physics of ``cost.power``, fitted
to a GPU and carried over by TDP, so that joules of a CPU here are seconds in another unit, not a measurement.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import power
from nearpeak.cost.platform import Work
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.formats import code
from nearpeak.hardware import Device

Array = NDArray[np.float64]
Tile = tuple[int, int, int]
DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp64": np.dtype(np.float64)}
SOURCE = Path(__file__).with_name("data") / "blocked_gemm.cpp"
SHORTEST = 2e-4
"""Seconds that one timing takes at least, by calls in a row: far above what reading the clock costs."""


@cache
def library() -> ctypes.CDLL:
    """The compiled product, built once in a process in a temporary folder.

    Raises:
        NearpeakError: no g++, or it does not compile.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise NearpeakError("no g++ on this machine's PATH, which compiles the blocked product; install GCC's C++")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "blocked_gemm.so"
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NearpeakError(f"g++ does not compile the blocked product: {done.stderr.strip()[-500:]}")
        return ctypes.CDLL(str(built))


def multiply(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any], tile: Tile) -> None:
    """``out = a b`` by tiles ``(rows, columns, depth)``; ``[m, k]``, ``[k, n]`` and ``[m, n]``, row-major.

    Raises:
        UsageError: sizes, number formats or strides that do not fit, or a tile of nothing.
        NearpeakError: no g++.
    """
    (m, k), n = a.shape, b.shape[1]
    name = next((name for name, dtype in DTYPES.items() if a.dtype == b.dtype == out.dtype == dtype), None)
    if name is None:
        raise UsageError(f"dtypes {a.dtype}, {b.dtype} and {out.dtype}: all must be one of {', '.join(DTYPES)}")
    if b.shape[0] != k or out.shape != (m, n) or not all(x.flags.c_contiguous for x in (a, b, out)):
        raise UsageError(f"shapes {a.shape}, {b.shape} and {out.shape}: needs row-major [m, k], [k, n] and [m, n]")
    if min(tile) < 1:
        raise UsageError(f"a tile of {tile} rows, columns and depth: each must be at least 1")
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, out)]
    library()["gemm_" + name](*pointers, *(ctypes.c_int64(x) for x in (m, n, k, *tile)))


def tile_seconds(m: int, n: int, k: int, dtype: str, tiles: Sequence[Tile], repeats: int = 7) -> Array:
    """Seconds of one product by each tile, ``[tiles]``: the least of ``repeats`` on one thread.

    Tiles take turns, so that what disturbs the machine disturbs all alike. The clock is the thread's own and stands
    while another process has the core; what is left of a neighbour (caches, clocks) only ever adds, hence the least.

    Raises:
        UsageError: no such dtype, a size, tile or number of repeats below 1.
        NearpeakError: no g++.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is none of the blocked product's; allowed: {', '.join(DTYPES)}")
    if min(m, n, k, repeats) < 1 or not tiles:
        raise UsageError(f"m {m}, n {n}, k {k}, {repeats} repeats of {len(tiles)} tiles: each must be at least 1")
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal(shape).astype(DTYPES[dtype]) for shape in ((m, k), (k, n)))
    out = np.empty((m, n), DTYPES[dtype])

    def timed(tile: Tile, calls: int) -> float:
        began = thread_time()
        for _ in range(calls):
            multiply(a, b, out, tile)
        return (thread_time() - began) / calls

    calls = [1 + int(SHORTEST / max(timed(tile, 1), 1e-9)) for tile in tiles]
    rounds = [[timed(tile, c) for tile, c in zip(tiles, calls, strict=True)] for _ in range(repeats)]
    return np.asarray(np.min(rounds, axis=0))


def watts(device: Device, m: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str, seconds: ArrayLike) -> Array:
    """Watts of a device during products that take ``seconds``: modelled from utilization, not measured (see the head).

    Args:
        m, n, k, seconds: arrays that broadcast.

    Raises:
        UsageError: no such dtype.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is none of the blocked product's; allowed: {', '.join(DTYPES)}")
    rows, columns, depth = (np.asarray(x, float) for x in (m, n, k))
    width = DTYPES[dtype].itemsize
    # A vector unit holds half as many doubles. The power model's formats end at fp32, which stands for fp64 too.
    compute = 2 * rows * columns * depth / (device.rates["fp32"] * DTYPES["fp32"].itemsize / width)
    size = width * (rows * depth + depth * columns + rows * columns)
    traffic = size / device.memory[0].bandwidth
    work = Work("gemm", np.asarray(code("fp32")), compute, traffic, np.maximum(compute, traffic), ())
    return power.watts(device, work, seconds)
