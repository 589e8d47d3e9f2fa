import numpy as np
import pytest

from nearpeak.bounds.utilization import (
    TOPIC,
    Layers,
    lanes,
    layer_seconds,
    network,
    of_seconds,
    one_core,
    shortlist,
    utilization,
)
from nearpeak.cost import platform
from nearpeak.errors import UnknownName, UsageError
from nearpeak.formats import code
from nearpeak.hardware import device

BF16, FP32 = code("bf16"), code("fp32")
A100 = platform(device("a100_sxm"), None)
XEON = platform(device("xeon_8358"), None)


@pytest.mark.parametrize(("name", "products"), [("resnet50", 4.087e9), ("mobilenet_v2", 0.2995e9), ("vgg16", 15.35e9)])
def test_published_networks_have_their_published_products(name, products):
    layers = network(name)
    assert (layers.flops * layers.arrays()["count"]).sum() == pytest.approx(2 * products, rel=1e-3)


def test_wider_layers_and_larger_batches_use_a_gpu_better_and_none_passes_the_peak():
    channels = np.array([8, 32, 128, 512, 2048])
    one = utilization(A100, Layers(channels, channels, 28, 28, 3, batch=32), BF16)
    assert np.all(np.diff(one.share) > 0)
    grown = utilization(A100, Layers(64, np.full((1, 1), 64), 28, 28, 3, batch=[[1], [8], [64]]), BF16)
    assert np.all(np.diff(grown.whole) > 0)
    assert np.all(one.share <= 1)


def test_grouped_and_depthwise_layers_reach_little_of_the_peak():
    for at, fmt in ((A100, BF16), (XEON, FP32)):
        groups = np.array([1, 4, 16, 64])
        found = utilization(at, Layers(64, 64, 28, 28, 3, batch=8, groups=groups), fmt)
        assert np.all(np.diff(found.share[:3]) < 0)
        assert found.share[3] < 0.5 * found.share[0]


def test_channels_that_leave_lanes_empty_cost_as_much_as_full_ones():
    assert lanes(device("xeon_8358"), FP32) == 16
    assert lanes(device("epyc_7742"), FP32) == 8
    full, odd = (utilization(XEON, Layers(64, out, 56, 56, 3, batch=8, passes=0), FP32).share for out in ([32], [17]))
    assert odd[0] == pytest.approx(full[0] * 17 / 32, rel=0.1)


def test_the_whole_is_the_layers_weighted_by_time():
    layers = network("resnet50", batch=16)
    found = utilization(A100, layers, BF16)
    assert found.whole == pytest.approx((found.share * found.seconds).sum() / found.seconds.sum())
    again = of_seconds(A100, layers, BF16, 2 * found.seconds)
    assert again.whole == pytest.approx(found.whole / 2)


def test_absent_layers_take_no_time():
    deep = Layers(64, [64, 128], 28, 28, 3, count=[3, 2])
    padded = Layers(64, [64, 128, 256], 28, 28, 3, count=[3, 2, 0])
    assert utilization(A100, padded, BF16).whole == pytest.approx(float(utilization(A100, deep, BF16).whole))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="groups must divide"):
        Layers(64, 64, 28, 28, 3, groups=3)
    with pytest.raises(UsageError, match="without a layer"):
        utilization(A100, Layers(64, [64], 28, 28, 3, count=0), BF16)
    with pytest.raises(UsageError, match="share = 0"):
        shortlist([0.1, 0.2], 0)
    with pytest.raises(UnknownName, match="resnet50"):
        network("resnet5")


def test_mobilenet_reaches_less_than_vgg_and_the_topic_says_where():
    shares = {
        net: TOPIC.explain(net=net, gpu="a100_sxm", batch=32.0).figures["utilization_share"]
        for net in ("vgg16", "resnet50", "mobilenet_v2")
    }
    assert shares["vgg16"] > shares["resnet50"] > 2 * shares["mobilenet_v2"]
    told = TOPIC.explain(net="mobilenet_v2", gpu="a100_sxm", batch=32.0)
    assert any("Grouped layers take" in sentence for sentence in told.says)


def cells(count=40, seed=1, flops=2e8, edges=4):
    """Random cells, padded to equal depth, each repeated until it has about ``flops``: plain, grouped and depthwise
    convolutions, bottlenecks and inverted bottlenecks.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        width, side = int(rng.choice([8, 16, 24, 32, 48, 64, 96, 128])), int(rng.choice([8, 14, 16, 28, 32]))
        found = []
        for _ in range(edges):
            match rng.integers(7):
                case 0:
                    found += [(width, width, 3, 1)]
                case 1:
                    found += [(width, width, 1, 1)]
                case 2:
                    found += [(width, width, int(rng.choice([3, 5])), width), (width, width, 1, 1)]
                case 3:
                    found += [(width, width, 3, int(rng.choice([2, 4, 8])))]
                case 4:
                    found += [(width, width // 4, 1, 1), (width // 4, width // 4, 3, 1), (width // 4, width, 1, 1)]
                case 5:
                    wide = 4 * width
                    found += [(width, wide, 1, 1), (wide, wide, 3, wide), (wide, width, 1, 1)]
                case 6:
                    found += [(width, width, 5, 1)]
        rows.append((side, found))
    depth = max(len(found) for _, found in rows)
    absent = (16, 16, 1, 1)
    table = np.array([[*found, *[absent] * (depth - len(found))] for _, found in rows], float)
    there = np.array([[1.0] * len(found) + [0.0] * (depth - len(found)) for _, found in rows])
    side = np.array([side for side, _ in rows], float)[:, None]
    inp, out, kernel, groups = np.moveaxis(table, -1, 0)
    once = Layers(inp, out, side, side, kernel, groups=groups, count=there)
    repeats = np.maximum(1, np.round(flops / (once.flops * there).sum(axis=1, keepdims=True)))
    return Layers(inp, out, side, side, kernel, groups=groups, count=there * repeats)


def test_layers_are_timed_one_by_one_and_absent_ones_not():
    pytest.importorskip("torch")
    from nearpeak.measure.utilization import EFFORT
    from nearpeak.measure.utilization import layer_seconds as measured_seconds

    layers = Layers(
        [8, 32, 32], [8, 32, 64], [4, 32, 32], [4, 32, 32], 3, batch=[[1], [4]], count=[[1, 2, 0], [1, 1, 1]]
    )
    seen = measured_seconds(layers, "cpu", effort=EFFORT)
    assert seen.shape == (2, 3)
    assert seen[0, 2] == 0
    assert np.all(seen[1] > 0)
    assert seen[1, 1] > 3 * seen[1, 0]  # 1,000 times the FLOP
    assert 0 < of_seconds(XEON, layers, FP32, seen).whole[1] < 1


@pytest.mark.slow
def test_prediction_orders_random_cells_as_this_machine_does():
    pytest.importorskip("torch")
    from scipy.stats import spearmanr

    from nearpeak.measure import device_here
    from nearpeak.measure.utilization import layer_seconds as measured_seconds

    on = one_core(device_here("cpu"))
    at = platform(on, None)
    nothing = Layers(1, [1], 1, 1, 1, passes=0)
    call = float(measured_seconds(nothing, "cpu")[0])
    layers = cells()
    predicted = utilization(at, layers, FP32, call).whole
    seen = of_seconds(at, layers, FP32, measured_seconds(layers, "cpu")).whole
    assert spearmanr(predicted, seen).statistic >= 0.7
    # At equal FLOP the better utilized cell is the faster one.
    fastest = set(np.argsort(-seen)[:5].tolist())
    assert len(fastest & set(shortlist(predicted, 0.5).tolist())) >= 4


def test_prediction_of_thousands_of_candidates_is_one_call():
    many = cells(2000, seed=2)
    assert layer_seconds(A100, many, BF16).shape == many.arrays()["count"].shape
    assert utilization(A100, many, BF16).whole.shape == (2000,)
