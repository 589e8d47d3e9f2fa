"""What things cost: seconds, bytes, joules and dollars of operators, of steps, and of whole Setups.

Here live pure functions over arrays, physics first, and the calibration that says what real kernels lose to it.
Here live no search over Setups (``plan``), no events (``simulate``) and no measuring (``measure``).
"""

from nearpeak.cost.evidence import evidence, intervals, platform_of, step_interval
from nearpeak.cost.files import read_table, write_table
from nearpeak.cost.memory import Ledger, largest_batch, ledger
from nearpeak.cost.money import CapEffect, Costs, cap_effects, costs
from nearpeak.cost.platform import Platform, platform
from nearpeak.cost.runs import closed_loop, predict_serving_table
from nearpeak.cost.serving import Prediction, predict, stage_seconds
from nearpeak.cost.step import Step, decode, mixed, prefill
from nearpeak.cost.tables import predict_operators
from nearpeak.cost.training import TrainStep, train_step, training_platform
from nearpeak.cost.training_memory import TrainingLedger, training_ledger, ways_to_fit
from nearpeak.cost.training_tables import predict_training_table

__all__ = [
    "CapEffect",
    "Costs",
    "Ledger",
    "Platform",
    "Prediction",
    "Step",
    "TrainStep",
    "TrainingLedger",
    "cap_effects",
    "closed_loop",
    "costs",
    "decode",
    "evidence",
    "intervals",
    "largest_batch",
    "ledger",
    "mixed",
    "platform",
    "platform_of",
    "predict",
    "predict_operators",
    "predict_serving_table",
    "predict_training_table",
    "prefill",
    "read_table",
    "stage_seconds",
    "step_interval",
    "train_step",
    "training_ledger",
    "training_platform",
    "ways_to_fit",
    "write_table",
]
