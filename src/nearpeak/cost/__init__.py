"""What things cost: seconds, bytes, joules and dollars of operators, of steps, and of whole Setups.

Here live pure functions over arrays, physics first, and the calibration that says what real kernels lose to it.
Here live no search over Setups (``plan``), no events (``simulate``) and no measuring (``measure``).
"""

from nearpeak.cost.evidence import evidence, intervals, platform_of
from nearpeak.cost.files import read_table, write_table
from nearpeak.cost.memory import Ledger, largest_batch, ledger
from nearpeak.cost.money import Costs, costs
from nearpeak.cost.platform import Platform, platform
from nearpeak.cost.runs import closed_loop, predict_serving_table
from nearpeak.cost.serving import Prediction, predict, stage_seconds
from nearpeak.cost.step import Step, decode, prefill
from nearpeak.cost.tables import predict_operators

__all__ = [
    "Costs",
    "Ledger",
    "Platform",
    "Prediction",
    "Step",
    "closed_loop",
    "costs",
    "decode",
    "evidence",
    "intervals",
    "largest_batch",
    "ledger",
    "platform",
    "platform_of",
    "predict",
    "predict_operators",
    "predict_serving_table",
    "prefill",
    "read_table",
    "stage_seconds",
    "write_table",
]
