"""What the cost model expects of a run on the machine at hand, before anything of the model runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nearpeak.errors import UsageError
from nearpeak.measure.checkpoint import Run
from nearpeak.measure.measurement import Measurement, Prediction

if TYPE_CHECKING:
    from nearpeak.hardware import Device
    from nearpeak.setup import Setup

ENGINE = "transformers"
LAUNCHES_PER_LAYER, LAUNCHES_BESIDES = 140, 80
"""Host time of an eager decode step of a Llama in transformers 5.23, in one-element operators: of each layer, and of
the rest of the step. A layer issues 55 operators; Python's share is the larger part. Measured on models of 2, 6 and 12
layers too small to compute anything (hidden 64, one thread); as a ratio of host times it travels with the host."""

LIBRARIES = 20e6
"""Bytes of torch and transformers that a first run on a CPU touches beyond importing them; 12 to 30 MB were seen."""


def expected(run: Run, device: "Device", rows: Sequence[Measurement]) -> Mapping[str, Prediction]:
    """Predicted ``ttft`` and ``tpot`` (seconds) and ``memory`` (bytes) of a run.

    Args:
        run: what is to run.
        device: with the rates and bandwidth that microbenchmarks measured on it (``measured_device``).
        rows: those microbenchmarks; they also tell what it costs to launch an operator.

    Raises:
        UsageError: the rows hold no launch.
    """
    import numpy as np  # here and below: what only measures does without NumPy

    from nearpeak.cost import decode, intervals, ledger, platform_of, prefill, stage_seconds
    from nearpeak.cost.engine import engine

    latencies = [r.figures["latency"].value for r in rows if "latency" in r.figures]
    if not latencies:
        raise UsageError("the microbenchmarks hold no launch latency; pass all rows of one run of them")
    setup = setup_of(run, device)
    platform = platform_of(setup)
    host = replace(engine(ENGINE), layer=LAUNCHES_PER_LAYER * latencies[0], step=LAUNCHES_BESIDES * latencies[0])
    batch = np.asarray(float(run.batch))
    first = stage_seconds(setup, host, prefill(platform, setup, setup.decode, batch, np.asarray(float(run.isl))).total)
    context = np.asarray(run.isl + run.osl / 2)
    later = stage_seconds(setup, host, decode(platform, setup, setup.decode, batch, context).total)
    need = ledger(setup, setup.decode)
    used = need.used - need.reserved + (LIBRARIES if device.kind == "cpu" else 0.0)
    spread = intervals(ENGINE, "agg", "datasheet")

    def prediction(value: float, figure: str) -> Prediction:
        low, high = spread[figure]
        return Prediction(value, value * low, value * high, "datasheet")

    found = {"ttft": prediction(float(first), "ttft"), "memory": prediction(float(used), "memory")}
    return found if run.osl == 1 else found | {"tpot": prediction(float(later), "tpot")}


def setup_of(run: Run, device: "Device") -> "Setup":
    """The Setup that a run is: one device, one instance, the whole batch at once."""
    from nearpeak.formats import code
    from nearpeak.hardware import Node, link
    from nearpeak.setup import Pool, Setup
    from nearpeak.workload import read

    node = Node(f"this {device.kind}", device.title, device, 1, link("pcie_4_x16"))
    stored = code(run.dtype)
    model = read(str(run.folder))
    return Setup(
        model, node, ENGINE, run.isl, run.osl, Pool(batch=run.batch), chunk=run.batch * run.isl,
        attention=stored, ffn=stored, experts=stored, kv=stored,
    )  # fmt: skip
