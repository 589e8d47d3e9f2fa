"""How many operators a processor second prices, beside the plain roofline of the same shapes, and what loading costs.

Run: make benchmark. Shapes are random and differ in every size, so nothing is shared between them; arrays are as long
as fits a core's cache. The roofline is the least that any model has to compute: the longer of FLOP over peak rate and
bytes over bandwidth.
"""

import json
import time
from collections.abc import Callable

import numpy as np

from nearpeak.cost import platform
from nearpeak.cost.calibration import decode
from nearpeak.cost.operators import attention_decode, attention_prefill, gemm, moe
from nearpeak.cost.stored import data
from nearpeak.hardware import device, link

SHAPES = 10_000
REPEATS = 40
TRIALS = 5


def rate(price: Callable[[], object]) -> float:
    """Shapes a processor second: the best of a few trials, since others may be busy on the machine."""
    price()
    best = np.inf
    for _ in range(TRIALS):
        began = time.process_time()
        for _ in range(REPEATS):
            price()
        best = min(best, time.process_time() - began)
    return SHAPES * REPEATS / best


def main() -> None:
    """Print one JSON object for each operator, and one for loading."""
    draw = np.random.default_rng(0)

    def size(low: float, high: float) -> np.ndarray:
        return np.round(2.0 ** draw.uniform(low, high, SHAPES))

    at = platform(device("h100_sxm"), link("nvlink4"), "vllm")
    peak, bandwidth = at.device.rates["bf16"], at.device.memory_bandwidth
    m, n, k = size(0, 14), size(7, 14), size(7, 14)
    batch, tokens, heads, group = size(0, 8), size(5, 15), size(3, 6), size(0, 3)
    experts, topk, ep, inter = size(5, 8), size(0, 3), size(0, 3), size(8, 12)
    jobs: dict[str, Callable[[], object]] = {
        "gemm": lambda: gemm(at, m, n, k),
        "attention_prefill": lambda: attention_prefill(at, batch, tokens, heads, heads / group, 128),
        "attention_decode": lambda: attention_decode(at, batch, tokens, heads, heads / group, 128),
        "moe": lambda: moe(at, m, 4096, inter, topk, experts, 1, ep),
    }
    plain = rate(lambda: np.maximum(2 * m * n * k / peak, 2 * (m * k + k * n + m * n) / bandwidth))
    rates = {name: rate(job) for name, job in jobs.items()}
    for name, found in rates.items():
        print(json.dumps({"operator": name, "per_cpu_second": found, "roofline_over_it": plain / found}))
    mean = len(rates) / sum(1 / r for r in rates.values())
    text = data("calibration.json", None)
    loading = []
    for _ in range(TRIALS):
        began = time.process_time()
        decode(text)
        loading.append(time.process_time() - began)
    print(json.dumps({"all_alike_per_cpu_second": mean, "loading_seconds": sorted(loading)[TRIALS // 2]}))


if __name__ == "__main__":
    main()
