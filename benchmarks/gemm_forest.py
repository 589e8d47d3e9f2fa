"""How well one forest knows a blocked product's seconds, watts and joules on shapes that it never saw.

Run: python benchmarks/gemm_forest.py [KERNELS.parquet ...]. It needs g++ and some minutes. 40 shapes (half fp32, half
fp64, sizes drawn log-uniformly) by 15 tiles drawn from 8 to 128 in each direction; a fifth of the shapes is left out
in turn. Tables of tuned GEMM kernels (a column for each parameter, and seconds) may follow: they hold one shape, so
configurations are left out instead. Prints one JSON object for each.
"""

import json
import sys
from functools import partial
from itertools import product
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from nearpeak.calibrate.gemm_forest import (
    Array,
    Kernels,
    folds,
    grow,
    mape,
    predict,
    r2,
    recommend,
    roofline,
    train,
)
from nearpeak.hardware.detect import cpu
from nearpeak.measure.blocked_gemm import DTYPES, tile_seconds, watts

SHAPES, TILES = 40, 15
SIDES = (8, 16, 32, 64, 128)
SMALLEST, LARGEST = 48, 640
PASSES, REPEATS = 10, 2
"""Each shape is visited anew in each pass: a neighbour on the same core's other thread slows all for seconds at a time,
by up to 1.7 times, and repeats in a row would not escape it.
"""
NEAR = 1.05
"""Seconds over the best measured that still count as the best."""
SAMPLE, TABLE_TREES = 4000, 50
"""Rows of a table that are looked at, and trees that they take: some seconds."""
OUTCOMES = ("seconds", "evaluation_seconds")


def measured() -> tuple[Kernels, Array, Array]:
    """Products ``[shapes, tiles]``, their seconds and watts."""
    draw = np.random.default_rng(0)
    sides = np.array(list(product(SIDES, repeat=3)))
    tiles = sides[draw.permutation(len(sides))[:TILES]]
    sizes = np.exp(draw.uniform(np.log(SMALLEST), np.log(LARGEST), (SHAPES, 3))).astype(int)
    dtypes = [list(DTYPES)[i % 2] for i in range(SHAPES)]
    choices = [(int(t[0]), int(t[1]), int(t[2])) for t in tiles]
    shapes = [(int(s[0]), int(s[1]), int(s[2])) for s in sizes]
    once = [partial(tile_seconds, *s, dtype, choices, REPEATS) for s, dtype in zip(shapes, dtypes, strict=True)]
    seconds = np.min([[one() for one in once] for _ in range(PASSES)], axis=0)
    device = cpu()
    drawn = np.array([watts(device, *s, d, row) for s, d, row in zip(shapes, dtypes, seconds, strict=True)])
    width = np.array([DTYPES[d].itemsize for d in dtypes])[:, None]
    (m, n, k), (tile_m, tile_n, tile_k) = sizes.T[:, :, None], tiles.T
    return Kernels(m, n, k, tile_m, tile_n, tile_k, width=width), seconds, drawn


def rows(kernels: Kernels, pick: NDArray[np.bool_]) -> Kernels:
    """Those shapes, all tiles: ``[rows]``."""
    return Kernels(**{name: values[pick].ravel() for name, values in kernels.columns().items()})


def on_this_machine() -> dict[str, object]:
    kernels, seconds, drawn = measured()
    joules = seconds * drawn
    fold = folds(range(SHAPES))
    found, power, energy, roof = (np.empty_like(seconds) for _ in range(4))
    pick = {name: np.empty(SHAPES, int) for name in ("time", "energy", "one for all")}
    for k in range(fold.max() + 1):
        out, rest = fold == k, fold != k
        forest = train(rows(kernels, rest), seconds[rest].ravel(), drawn[rest].ravel(), joules[rest].ravel())
        held = rows(kernels, out)
        said = predict(forest, held)
        for into, what in ((found, said.seconds), (power, said.watts), (energy, said.joules)):
            into[out] = what.reshape(-1, TILES)
        roof[out] = roofline(rows(kernels, rest), seconds[rest].ravel()).seconds(held).reshape(-1, TILES)
        shaped = Kernels(**{name: values[out] for name, values in kernels.columns().items()})
        pick["time"][out] = recommend(forest, shaped, "time")
        pick["energy"][out] = recommend(forest, shaped, "energy")
        pick["one for all"][out] = np.log(seconds[rest]).mean(axis=0).argmin()
    over = {name: np.take_along_axis(seconds, p[:, None], 1)[:, 0] / seconds.min(axis=1) for name, p in pick.items()}
    joules_over = np.take_along_axis(joules, pick["energy"][:, None], 1)[:, 0] / joules.min(axis=1)
    return {
        "kernels": "blocked C++ on one core, watts modelled",
        "points": seconds.size,
        "left out": "shapes",
        "r2 of log seconds": r2(np.log(found), np.log(seconds)),
        "r2 of seconds": r2(found, seconds),
        "mape of seconds, %": mape(found, seconds),
        "mape of the roofline, %": mape(roof, seconds),
        "r2 of log seconds of the roofline": r2(np.log(roof), np.log(seconds)),
        "mape of watts, %": mape(power, drawn),
        "mape of joules, %": mape(energy, joules),
        "shapes whose recommended tile is within 5 % of the best, %": 100 * float((over["time"] <= NEAR).mean()),
        "the same for energy, %": 100 * float((joules_over <= NEAR).mean()),
        "the same, the best tile on average for all shapes, %": 100 * float((over["one for all"] <= NEAR).mean()),
        "the same, a tile at random, %": 100 * float((seconds / seconds.min(axis=1)[:, None] <= NEAR).mean()),
        "worst tile over best, median": float(np.median(seconds.max(axis=1) / seconds.min(axis=1))),
    }


def of_a_table(path: str) -> dict[str, object]:
    """A table of one shape by many configurations: a fifth of a sample is left out of the fit."""
    columns = duckdb.from_parquet(path).fetchnumpy()
    seconds = columns["seconds"]
    kept = np.flatnonzero(np.isfinite(seconds) & (seconds > 0))
    kept = np.random.default_rng(0).permutation(kept)[:SAMPLE]
    names = [name for name in columns if name not in OUTCOMES]
    table = np.log2(1 + np.stack([columns[name][kept] for name in names], axis=-1).astype(float))
    seconds = seconds[kept].astype(float)
    out = folds(range(kept.size)) == 0
    forest = grow(table[~out], np.log(seconds[~out, None]), TABLE_TREES)
    found = np.exp(forest.values(table[out])[:, 0])
    # All rows are one shape, of which a roofline knows one time: that of least error.
    one = np.median(seconds[~out])
    return {
        "kernels": Path(path).stem,
        "points": kept.size,
        "left out": "configurations, of one shape",
        "r2 of log seconds": r2(np.log(found), np.log(seconds[out])),
        "mape of seconds, %": mape(found, seconds[out]),
        "mape of the median, %": mape(np.full_like(found, one), seconds[out]),
        "recommended over the best left out": float(seconds[out][found.argmin()] / seconds[out].min()),
    }


def main() -> None:
    """Print what was measured here, then what the tables hold."""
    print(json.dumps(on_this_machine()), flush=True)
    for path in sys.argv[1:]:
        print(json.dumps(of_a_table(path)), flush=True)


if __name__ == "__main__":
    main()
