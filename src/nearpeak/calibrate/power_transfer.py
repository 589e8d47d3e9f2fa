"""How far watts fitted on one device hold on another: static batches served on A100s, never part of the fit.

    python -m nearpeak.calibrate.power_transfer MEASUREMENTS/serving/static_batch.parquet

The table (Splitwise, Patel et al., ISCA 2024) gives mean power over TDP of a device while one batch is served, and the
seconds of its prompts and of a token. Predicted is the mean of both phases, weighted by their seconds: measured ones,
and predicted ones.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import power, step_power
from nearpeak.cost.evidence import platform_of
from nearpeak.cost.files import read_table
from nearpeak.cost.serving import predict
from nearpeak.cost.step import Step
from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture, Attention, Dense, read

Array = NDArray[np.float64]
SHAPES: dict[str, dict[str, Any]] = {
    "llama2-70b": {"vocab": 32000},
    "bloom-176b": {"vocab": 250880, "hidden": 14336, "layers": 70, "heads": 112, "inter": 57344},
}
"""Published sizes of the two models (their config.json), over those of Llama 3.1 70B."""
NODE = "a100_sxm"


def architecture(name: str) -> Architecture:
    """The sizes of one of the table's models."""
    base, shape = read("meta-llama/Meta-Llama-3.1-70B"), SHAPES[name]
    if "heads" not in shape:
        return replace(base, name=name, vocab=shape["vocab"])
    block = base.blocks[0]
    assert isinstance(block.mixer, Attention)
    assert isinstance(block.ffn, Dense)
    mixer = replace(block.mixer, heads=shape["heads"], kv_heads=shape["heads"])
    ffn = replace(block.ffn, inter=shape["inter"], gated=False)
    blocks = (replace(block, count=shape["layers"], mixer=mixer, ffn=ffn),)
    return replace(base, name=name, vocab=shape["vocab"], hidden=shape["hidden"], blocks=blocks)


def compare(path: Path, node: str) -> dict[str, Array]:
    """Predicted over measured mean power of every run: from measured and predicted seconds, and of two baselines."""
    table = read_table(path)
    good = np.asarray(table["average_power"], float) > 0
    found: dict[str, list[Array]] = {}
    for name in SHAPES:
        for tp in np.unique(table["tensor_parallel"]):
            at = np.flatnonzero(good & (table["model"] == name) & (table["tensor_parallel"] == tp))
            if not at.size:
                continue
            columns = {c: np.asarray(table[c], float)[at] for c in ("prompt_size", "token_size", "batch_size")}
            pool = Pool(tp=int(tp), batch=columns["batch_size"])
            setup = Setup(
                architecture(name), node_of(node), "vllm", columns["prompt_size"], columns["token_size"], pool
            )
            seconds = [np.asarray(table[c], float)[at] / 1e3 for c in ("prompt_time", "token_time")]
            for way, ratio in _ratios(setup, seconds, np.asarray(table["average_power"], float)[at]).items():
                found.setdefault(way, []).append(ratio)
    return {way: np.concatenate(parts) for way, parts in found.items()}


def _ratios(setup: Setup, seconds: list[Array], measured: Array) -> dict[str, Array]:
    device, p = setup.node.device, platform_of(setup)
    predicted = predict(p, setup)
    batch, later = np.asarray(setup.decode.batch, float), np.asarray(setup.osl, float) - 1
    prompt, token = predicted.times.prompt * batch, predicted.times.token

    def drawn(first: Array, step: Array) -> Array:
        decoding = _watts(setup, setup.decode, predicted.times.decode, step_power.decode_pass(setup), step)
        whole = replace(step_power.prefill_pass(setup), sequences=batch, beside=None)
        prefilling = _watts(setup, setup.decode, predicted.times.prefill * batch, whole, first)
        joules = prefilling * first + decoding * later * step
        return np.asarray(joules / (first + later * step) / device.tdp)

    plain = power.idle(device) / device.tdp
    return {
        "measured seconds": drawn(*seconds) / measured,
        "predicted seconds": drawn(prompt, token) / measured,
        "TDP": 1.0 / measured,
        "idle": plain / measured,
    }


def _watts(setup: Setup, pool: Pool, step: Step, at: step_power.Pass, whole: Array) -> Array:
    """Watts while the steps take ``whole`` seconds; kernels run as long as predicted, or less where they cannot."""
    fitted = step * np.minimum(1.0, whole / step.total)
    return step_power.mean_watts(setup, step_power.loads(platform_of(setup), setup, pool, fitted, at), whole)


def main() -> None:
    """Print the median error, the bias and the share inside the interval of transferred watts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--node", default=NODE, help="the device of the runs")
    given = parser.parse_args()
    low, high = power.interval("transferred")
    for way, ratio in compare(given.table, given.node).items():
        inside = np.mean((1 / ratio >= low) & (1 / ratio <= high))
        error = 100 * np.median(np.abs(ratio - 1))
        print(f"{way:18s} {ratio.size:4d} rows  error {error:5.1f} %  bias {np.median(ratio):.2f}  inside {inside:.2f}")


if __name__ == "__main__":
    main()
