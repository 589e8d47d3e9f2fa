"""The same planning job by nearpeak and by AIConfigurator (pip install aiconfigurator, in an environment of its own).

Run: python benchmarks/plan_against_peer.py PATH/TO/aiconfigurator [RUNS]

Whole processes, in turn, so that both meet the same machine; wall seconds, and the ratio pair by pair. The peer is not
part of nearpeak's environments: its requirements differ.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time

OURS = shlex.split("plan Qwen/Qwen3-32B-FP8 --gpus h200:1..8 --isl 4000 --osl 500 --ttft 0.3 --tpot 0.01 --json")
OURS = [sys.executable, "-c", "from nearpeak.cli import main; main()", *OURS]
THEIRS = shlex.split(
    "cli default --model-path Qwen/Qwen3-32B-FP8 --system h200_sxm --total-gpus 8 --backend vllm "
    "--isl 4000 --osl 500 --ttft 300 --tpot 10 --no-color"
)


def seconds(command: list[str]) -> float:
    """Wall seconds of a command; one thread, no network."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    """Print one JSON object."""
    peer = [sys.argv[1], *THEIRS]
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    seconds(OURS), seconds(peer)  # warm the file cache
    pairs = [(seconds(OURS), seconds(peer)) for _ in range(runs)]
    answer = json.loads(subprocess.run(OURS, check=True, capture_output=True, text=True).stdout)
    print(
        json.dumps(
            {
                "job": "Qwen3-32B-FP8, up to 8 H200, 4000 + 500 tokens, TTFT 0.3 s, TPOT 0.01 s",
                "nearpeak_seconds": statistics.median(a for a, _ in pairs),
                "aiconfigurator_seconds": statistics.median(b for _, b in pairs),
                "ratio": statistics.median(b / a for a, b in pairs),
                "nearpeak_setups": answer["priced"],
            }
        )
    )


if __name__ == "__main__":
    main()
