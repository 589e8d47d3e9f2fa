"""Measuring on the machine at hand: timers, microbenchmarks, a model's prefill and decode, and the store of it all.

Importing this room loads neither torch nor DuckDB; what needs them imports them when it is called.
"""

from nearpeak.measure.checkpoint import Run, planned
from nearpeak.measure.compare import Comparison, compare, compare_figure
from nearpeak.measure.expected import expected
from nearpeak.measure.fingerprint import Fingerprint, Gpu, available_cores, fingerprint
from nearpeak.measure.generate import GENERATION, Measured, prefill_and_decode
from nearpeak.measure.measurement import Figure, Measurement, Prediction, rate, record, timed
from nearpeak.measure.memory import Memory, available_memory, total_memory
from nearpeak.measure.microbench import Sizes, device_here, measured_device, microbenchmarks
from nearpeak.measure.prove import prove
from nearpeak.measure.store import Store, default_path
from nearpeak.measure.timing import Effort, Interval, Sample, collect, measure

__all__ = [
    "GENERATION",
    "Comparison",
    "Effort",
    "Figure",
    "Fingerprint",
    "Gpu",
    "Interval",
    "Measured",
    "Measurement",
    "Memory",
    "Prediction",
    "Run",
    "Sample",
    "Sizes",
    "Store",
    "available_cores",
    "available_memory",
    "collect",
    "compare",
    "compare_figure",
    "default_path",
    "device_here",
    "expected",
    "fingerprint",
    "measure",
    "measured_device",
    "microbenchmarks",
    "planned",
    "prefill_and_decode",
    "prove",
    "rate",
    "record",
    "timed",
    "total_memory",
]
