"""Networks fitted to all-reduces: what made them is found again, and measured machines are met."""

from pathlib import Path

import numpy as np
import pytest

from nearpeak.calibrate.network import AllReduces, fit_fabric
from nearpeak.cost.calibration import Calibration, shipped
from nearpeak.cost.collectives import collective
from nearpeak.cost.fabric import Fabric
from nearpeak.cost.files import read_table
from nearpeak.cost.platform import Platform, platform
from nearpeak.errors import UsageError
from nearpeak.hardware import device, link

MEASURED = Path(__file__).parents[3] / "shared" / "measurements" / "network"
measured = pytest.mark.skipif(not MEASURED.is_dir(), reason="no measured networks beside this checkout")


def nccl(gpu: str, bus: str) -> Platform:
    """Without the engines' own all-reduce: the tables are NCCL's."""
    ours = {name: op for name, op in shipped().operators.items() if name != "allreduce_custom"}
    return platform(device(gpu), link(bus), "nccl", Calibration("NCCL alone", ours))


def grid(p: Platform, fabric: Fabric, noise: float) -> AllReduces:
    size, ranks = (x.ravel() for x in np.meshgrid(2.0 ** np.arange(11, 27), [8.0, 16.0, 32.0]))
    devices = np.minimum(ranks, 4.0)
    off = np.exp(noise * np.random.default_rng(0).standard_normal(size.size))
    return AllReduces(size, ranks, devices, collective(p, "all_reduce", size, ranks, fabric, devices) * off)


def test_the_fabric_behind_all_reduces_is_found_again():
    pytest.importorskip("scipy")
    p, made = nccl("a100_sxm", "nvlink3"), Fabric(link("infiniband_hdr"), 3.0, 0.6, 8e-6)
    found = fit_fabric(p, made.link, 4, grid(p, made, 0.03))
    assert found.ports * found.share == pytest.approx(1.8, rel=0.1)
    assert found.delay == pytest.approx(8e-6, rel=0.25)


def test_tables_that_tell_nothing_of_a_network_are_refused():
    pytest.importorskip("scipy")
    p = nccl("a100_sxm", "nvlink3")
    rows = grid(p, Fabric(link("infiniband_hdr"), 4), 0.0)
    with pytest.raises(UsageError, match="too few"):
        fit_fabric(p, link("infiniband_hdr"), 4, rows.where(rows.ranks == rows.devices))
    with pytest.raises(UsageError, match="not above 0"):
        fit_fabric(p, link("infiniband_hdr"), 4, AllReduces(rows.size, rows.ranks, rows.devices, 0 * rows.seconds))


def table(name: str) -> AllReduces:
    c = read_table(MEASURED / f"{name}.parquet")
    columns = ("size", "num_workers", "devices_per_node")
    size, ranks, devices = (np.asarray(c[n], float) for n in columns)
    return AllReduces(size, ranks, devices, np.asarray(c["time_stats.all_reduce.median"], float) * 1e-3)


def error(predicted, rows: AllReduces) -> float:
    return float(100 * np.median(np.abs(predicted / rows.seconds - 1)))


@measured
def test_rings_inside_nodes_of_machines_outside_the_fit_are_met():
    """Two A100 machines that no constant was fitted to; below 256 KiB their tables are of waiting, not of NCCL."""
    p, rows = nccl("a100_sxm", "nvlink3"), table("a100_dgx_all_reduce")
    for ranks in (2, 4, 8):
        part = rows.where((rows.ranks == ranks) & (rows.devices == ranks) & (rows.size >= 2**18))
        assert error(collective(p, "all_reduce", part.size, part.ranks), part) < 20
    bus, rows = nccl("a100_sxm", "pcie4_x16"), table("a100_pairwise_nvlink_all_reduce")
    for ranks, on in ((2, p), (4, bus)):
        part = rows.where((rows.ranks == ranks) & (rows.size >= 2**18))
        assert error(collective(on, "all_reduce", part.size, part.ranks), part) < 15


@measured
def test_fitting_a_poor_network_beats_believing_its_datasheet_on_nodes_left_out():
    pytest.importorskip("scipy")
    p, rows, port = nccl("a100_sxm", "nvlink3"), table("a100_dgx_all_reduce"), link("infiniband_hdr")
    between = rows.where(rows.ranks > rows.devices)
    for ranks in (2, 4, 16):
        rest, part = between.where(between.ranks != ranks), between.where(between.ranks == ranks)
        found = fit_fabric(p, port, 8, rest.where(np.arange(0, rest.size.size, 7)))
        assert error(part.predicted(p, found), part) < 50 < error(part.predicted(p, Fabric(port, 8)), part)
