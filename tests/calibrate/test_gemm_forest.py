from itertools import product

import numpy as np
import pytest

from nearpeak.calibrate.gemm_forest import (
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
from nearpeak.errors import UsageError

TILES = np.array(list(product((8, 32, 128), repeat=3))[::2]).T


def made(seed, shapes=40):
    """Products by a law of padding, waves and reuse, on 2 units: kernels ``[shapes, tiles]``, seconds and watts."""
    draw = np.random.default_rng(seed)
    sizes = np.exp(draw.uniform(np.log(48), np.log(1024), (3, shapes, 1))).astype(int)
    kernels = Kernels(*sizes, *TILES, width=draw.choice([4, 8], (shapes, 1)), units=2)
    c = {name: x.astype(float) for name, x in kernels.columns().items()}
    tiles = np.ceil(c["m"] / c["tile_m"]) * np.ceil(c["n"] / c["tile_n"])
    one = 2 * c["tile_m"] * c["tile_n"] * c["k"] / 8e9 + c["width"] * c["k"] * (c["tile_m"] + c["tile_n"]) / 2e9
    seconds = np.ceil(tiles / 2) * one * (1 + 8 / c["tile_k"])
    busy = kernels.operations() / seconds / 16e9
    return kernels, seconds, 40 + 60 * busy


def flat(kernels, pick):
    return Kernels(**{name: x[pick].ravel() for name, x in kernels.columns().items()})


@pytest.fixture(scope="module")
def split():
    """A forest trained on 32 of 40 shapes, and what it never saw."""
    kernels, seconds, watts = made(0)
    out = folds(range(40)) == 0
    forest = train(
        flat(kernels, ~out), seconds[~out].ravel(), watts[~out].ravel(), (seconds * watts)[~out].ravel(), trees=40
    )
    return forest, kernels, seconds, watts, out


def test_a_law_is_recovered_on_shapes_never_seen_where_a_roofline_is_not_enough(split):
    forest, kernels, seconds, watts, out = split
    held, took, drew = flat(kernels, out), seconds[out].ravel(), watts[out].ravel()
    said = predict(forest, held)
    roof = roofline(flat(kernels, ~out), seconds[~out].ravel()).seconds(held)
    assert r2(np.log(said.seconds), np.log(took)) > 0.97
    assert mape(said.seconds, took) < 0.5 * mape(roof, took)
    assert mape(said.watts, drew) < 10
    assert mape(said.joules, took * drew) < 15
    # Leaves are means of logarithms, so the three outputs of one forest agree.
    assert said.joules == pytest.approx(said.seconds * said.watts, rel=1e-9)


def test_products_larger_than_any_seen_get_more_time_than_any_seen(split):
    forest, _, seconds, _, _ = split
    large = predict(forest, Kernels(4096, 4096, 4096, 128, 128, 32, units=2))
    assert large.seconds[0] > 5 * seconds.max()


@pytest.mark.parametrize("objective", ["time", "energy"])
def test_the_recommended_tile_is_near_the_best(split, objective):
    forest, kernels, seconds, watts, out = split
    shaped = Kernels(**{name: x[out] for name, x in kernels.columns().items()})
    figure = (seconds if objective == "time" else seconds * watts)[out]
    pick = recommend(forest, shaped, objective)
    over = np.take_along_axis(figure, pick[:, None], 1)[:, 0] / figure.min(axis=1)
    assert np.median(over) < 1.05
    assert np.median(figure.mean(axis=1) / figure.min(axis=1)) > 1.5  # the choice matters


def test_energy_and_time_may_want_different_tiles():
    """The quicker of two tiles draws four times the power."""
    kernels = Kernels(np.repeat([100, 200, 300], 2), 100, 100, np.tile([8, 16], 3), 8, 8)
    seconds = kernels.operations() * np.tile([2e-9, 1e-9], 3)
    watts = np.tile([10.0, 40.0], 3)
    forest = train(kernels, seconds, watts, seconds * watts, trees=10)
    asked = Kernels([[250]], 100, 100, [8, 16], 8, 8)
    assert recommend(forest, asked, "time").tolist() == [1]
    assert recommend(forest, asked, "energy").tolist() == [0]


def test_every_output_is_learnt_by_the_same_trees():
    draw = np.random.default_rng(0)
    table = draw.uniform(0, 1, (400, 3))
    targets = np.stack([np.sin(6 * table[:, 0]), 1000 * (table[:, 1] > 0.5), table[:, 0] * table[:, 1]], axis=-1)
    forest = grow(table[:300], targets[:300], trees=40)
    said = forest.values(table[300:])
    assert said.shape == (100, 3)
    assert all(r2(said[:, i], targets[300:, i]) > 0.9 for i in range(3))
    # Each tree keeps all rows apart, so what was seen is answered as it was.
    assert forest.values(table[:300]) == pytest.approx(targets[:300])


def test_the_roofline_finds_its_own_constants():
    kernels = made(1)[0]
    kernels = flat(kernels, np.ones(40, bool))
    seconds = np.maximum(kernels.operations() / 3e9, kernels.traffic() / 2e8)
    found = roofline(kernels, seconds)
    assert mape(found.seconds(kernels), seconds) < 2


def test_folds_keep_shapes_together():
    shape = np.repeat(np.arange(12), 5)
    fold = folds(shape, 4)
    assert np.bincount(fold).tolist() == [15, 15, 15, 15]
    assert all(np.unique(fold[shape == s]).size == 1 for s in range(12))


def test_what_cannot_be_learnt_is_refused():
    kernels = Kernels([64, 128], 64, 64, 8, 8, 8)
    ones = np.ones(2)
    with pytest.raises(UsageError, match="watts must be above 0"):
        train(kernels, ones, np.array([1.0, 0.0]), ones)
    with pytest.raises(UsageError, match="tile_m holds 0"):
        train(Kernels([64, 128], 64, 64, 0, 8, 8), ones, ones, ones)
    with pytest.raises(UsageError, match="allowed: time, energy"):
        recommend(train(kernels, ones, ones, ones, trees=1), kernels, "money")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not finite"):
        grow(np.array([[np.nan]]), np.ones((1, 1)))
    with pytest.raises(UsageError, match="5 folds of 2 shapes"):
        folds([1, 2])


@pytest.mark.slow
def test_blocked_products_of_this_machine_are_predicted_on_shapes_never_seen():
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine, which compiles the blocked product")
    from nearpeak.hardware.detect import cpu
    from nearpeak.measure.blocked_gemm import tile_seconds, watts

    draw = np.random.default_rng(0)
    sizes = np.exp(draw.uniform(np.log(48), np.log(256), (16, 3))).astype(int)
    tiles = [(8, 8, 8), (16, 64, 16), (64, 16, 64), (128, 128, 128), (32, 8, 128), (8, 128, 32)]
    passes = [[tile_seconds(*map(int, s), "fp32", tiles, 3) for s in sizes] for _ in range(5)]
    seconds = np.min(passes, axis=0)
    drawn = np.array([watts(cpu(), *s, "fp32", row) for s, row in zip(sizes, seconds, strict=True)])
    kernels = Kernels(*sizes.T[:, :, None], *np.array(tiles).T)
    out = folds(range(16), 4) == 0
    rest, held = flat(kernels, ~out), flat(kernels, out)
    forest = train(rest, seconds[~out].ravel(), drawn[~out].ravel(), (seconds * drawn)[~out].ravel(), trees=40)
    took = seconds[out].ravel()
    said = predict(forest, held).seconds
    assert r2(np.log(said), np.log(took)) > 0.8
    assert mape(said, took) < mape(roofline(rest, seconds[~out].ravel()).seconds(held), took)
