"""How many distinct Setups the planner prices in a processor second, and what pricing arrays gains over a loop.

Run: make benchmark. Two jobs: the README's (a dense model, up to 8 H200) and a mixture of experts on up to 64.
The loop prices the same Setups one at a time through the same functions, a sample of them.
"""

import json
import time

import numpy as np

from nearpeak.cost import costs, platform_of, predict
from nearpeak.hardware import node_of
from nearpeak.plan import Fleet, Goal, base_setup, plan
from nearpeak.plan.planner import _blocks
from nearpeak.setup import Setup
from nearpeak.workload import read

GOAL = Goal("cost", ttft=0.3, tpot=0.01)
JOBS = {
    "Qwen3-32B, h200:1..8": ("Qwen/Qwen3-32B", 8),
    "DeepSeek-V3, h200:8..64": ("deepseek-ai/DeepSeek-V3", 64),
}
ISL, OSL = 4000, 500
REPEATS = 5
SAMPLE = 200


def seconds_alone(setups: list[Setup]) -> float:
    """Processor seconds to price one Setup when each is priced alone."""
    began = time.process_time()
    for setup in setups:
        predicted = predict(platform_of(setup), setup)
        costs(setup, predicted)
    return (time.process_time() - began) / len(setups)


def main() -> None:
    """Print one JSON object for each job."""
    for name, (model_id, most) in JOBS.items():
        model, fleet = read(model_id), Fleet(node_of("h200"), 1, most)
        runs = [plan(model, [fleet], GOAL, ISL, OSL) for _ in range(REPEATS)]
        rates = sorted(run.priced / run.seconds for run in runs)
        draw = np.random.default_rng(0)
        blocks = [block for _, block in _blocks(base_setup(model, fleet.node, "vllm", ISL, OSL), fleet, GOAL, None)]
        picked = [blocks[i] for i in draw.integers(len(blocks), size=SAMPLE)]
        alone = seconds_alone([b.at(tuple(int(draw.integers(n)) for n in b.shape)) for b in picked])
        print(
            json.dumps(
                {
                    "job": name,
                    "distinct_setups": runs[0].priced,
                    "setups_per_cpu_second": {"min": rates[0], "median": rates[REPEATS // 2], "max": rates[-1]},
                    "one_at_a_time_per_cpu_second": 1 / alone,
                    "ratio": rates[REPEATS // 2] * alone,
                }
            )
        )


if __name__ == "__main__":
    main()
