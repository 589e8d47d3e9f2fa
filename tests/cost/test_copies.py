"""Copies to and from the host, and kernels that only move bytes."""

import numpy as np
import pytest

from nearpeak.cost.copies import copy
from nearpeak.cost.operators import LAUNCH, elementwise
from nearpeak.cost.platform import Platform, platform
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import device, link

SIZE = 2.0 ** np.arange(0, 34)


def on(gpu: str) -> Platform:
    found = device(gpu)
    return platform(found, link(found.scale_up or found.host_link))


@pytest.mark.parametrize("gpu", ["v100_sxm", "a100_sxm", "h100_sxm", "rtx_pro_6000_server", "gh200"])
def test_copies_grow_with_their_size_and_stay_below_the_links_bandwidth(gpu):
    p = on(gpu)
    host = link(p.device.host_link)
    for direction in ("to_device", "to_host"):
        pinned, pageable = copy(p, SIZE, direction), copy(p, SIZE, direction, False)
        assert np.all(np.diff(pinned) > 0)
        assert np.all(np.diff(pageable) > 0)
        assert np.all(pinned > SIZE / host.bandwidth)
        assert np.all(pageable >= pinned)
        assert pinned[0] < 10e-6
        assert pinned[-1] < 1.2 * SIZE[-1] / host.bandwidth


def test_pinned_memory_pays_where_the_link_is_quicker_than_a_host_thread():
    fifth = copy(on("h100_sxm"), 1e9, pinned=False) / copy(on("h100_sxm"), 1e9)
    third = copy(on("v100_sxm"), 1e9, pinned=False) / copy(on("v100_sxm"), 1e9)
    assert fifth > 4
    assert third < 1.7
    assert copy(on("h100_sxm"), 4096, "to_device", False) == copy(on("h100_sxm"), 4096)
    assert copy(on("h100_sxm"), 4096, "to_host", False) > copy(on("h100_sxm"), 4096)


def test_copies_that_make_no_sense_are_refused():
    p = on("h100_sxm")
    assert copy(p, 0) == 0
    with pytest.raises(UnknownName, match="to_host"):
        copy(p, 1e6, "sideways")
    with pytest.raises(UsageError, match="-5 bytes"):
        copy(p, np.array([1.0, -5.0]))
    cpu = device("epyc_7742")
    with pytest.raises(UsageError, match="no link to a host"):
        copy(platform(cpu, None), 1e6)


@pytest.mark.parametrize("gpu", ["a100_sxm", "h100_sxm", "b200_sxm", "rtx_pro_6000_server"])
def test_small_kernels_take_their_launch_and_large_ones_the_bandwidth(gpu):
    p = on(gpu)
    time = elementwise(p, SIZE)
    assert np.all(np.diff(time) > 0)
    assert time[0] == pytest.approx(LAUNCH, rel=1e-3)
    assert elementwise(p, 0) == 0
    assert 0.7 < 16e9 / p.device.memory_bandwidth / elementwise(p, 16e9) < 0.85


def test_what_fits_the_cache_moves_faster_than_main_memory_and_no_faster_than_the_cache():
    p = on("h100_sxm")
    size = np.array([4.0, 16.0, 32.0]) * 2**20
    time = elementwise(p, size) - LAUNCH
    assert np.all(time < 0.6 * size / p.device.memory_bandwidth)
    assert np.all(time > size / p.cache.bandwidth)
    unknown = on("b200_sxm")
    assert unknown.cache is None
    assert np.all(elementwise(unknown, size) - LAUNCH > size / unknown.device.memory_bandwidth)
