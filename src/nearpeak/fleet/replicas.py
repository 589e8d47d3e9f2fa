"""A batch capped at the knee, and replicas of the model in the memory that this frees, served by events.

``bounds.knee`` says in closed form from which batch on a larger one stops to pay, and how many replicas fit then
(Recasens et al., arXiv 2503.08311). Here a closed loop of requests is served on one engine at the largest batch, on one
at the cap, and on replicas at the cap whose caches together take no more memory.

What replicas on one device do to each other is an assumption, and an explicit one. ``R`` of them run like steps in a
steady state. A step that takes ``T`` alone, ``K`` of it kernels and the rest its host's, then takes

    max(T, R D)    where kernels of several processes run at once (NVIDIA MPS)
    max(T, R K)    where they take turns

with ``D`` what the device cannot share: its bytes at the bandwidth that streaming kernels reach, or its FLOP at the
peak rate, whichever takes longer (never more than ``K``). So one's host time, and its phases of arithmetic, are hidden
behind the memory traffic of the others, and nothing is slower than alone while there is room. It is taken for each
step, so that a step with a prompt is slowed as if the others had one too: on average that is pessimistic. Caches and
buses between kernels are not modelled.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.bounds import passes
from nearpeak.bounds.knee import Advice, advise, pace
from nearpeak.cost import ledger, platform_of
from nearpeak.cost.memory import CONTEXT
from nearpeak.cost.operators import STREAMED
from nearpeak.errors import UsageError
from nearpeak.fleet.steady_state import closed_loop, lengths
from nearpeak.formats import BYTES
from nearpeak.setup import Setup
from nearpeak.simulate.deploy import BLOCK, deploy
from nearpeak.simulate.serving import Deployment, Instances
from nearpeak.simulate.steps import CHUNKS, PROMPTS, StepTable
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive

Array = NDArray[np.float64]


def unshared_time(setup: Setup, rows: ArrayLike, users: ArrayLike, context: ArrayLike) -> Array:
    """Seconds of a step that its devices cannot give to another: memory traffic, or arithmetic.

    Args:
        rows: tokens of the step, that all meet the weights. users: of them those that decode. context: tokens in the
            cache of each.
    """
    model, device, devices = setup.model, setup.node.device, float(np.asarray(setup.decode.devices))
    stored, element = np.asarray(setup.ffn, np.intp), BYTES[np.asarray(setup.kv, np.intp)]
    tokens, decoding = np.asarray(rows, float), np.asarray(users, float)
    read = passes.met_parameters(model, tokens) * BYTES[stored] + decoding * passes.cache_read(model, context, element)
    flop = tokens * passes.matrix_flop(model) + decoding * passes.attention_flop(model, context)
    arithmetic = flop / platform_of(setup).rate(stored)
    return np.asarray(np.maximum(read / (device.memory_bandwidth * STREAMED), arithmetic) / devices)


def shared_table(setup: Setup, alone: StepTable, replicas: int, overlap: bool) -> StepTable:
    """Step times of one of ``replicas`` engines that share their devices, from those of one that has them alone."""
    batch, host = np.arange(alone.decode.shape[1], dtype=float)[:, None], alone.kinds[0]
    beside = host["step"] + host["sequence"] * batch
    rows = np.arange(alone.rows.shape[1], dtype=float)
    decode, matrices, attend, chunk = alone.decode[0] - beside, alone.rows[0], alone.attend[0], alone.prefill[0]
    if overlap:
        # Kernels that reach more than streaming ones do take no longer than they take.
        matrix = unshared_time(setup, batch, 0.0, 1.0)
        decode = np.minimum(decode, unshared_time(setup, batch, batch, alone.knots))
        attend = np.minimum(attend, np.maximum(unshared_time(setup, batch, batch, alone.knots) - matrix, 0.0))
        matrices = np.minimum(matrices, unshared_time(setup, rows, 0.0, 1.0))
        chunk = np.minimum(chunk, _chunk_time(setup))
    return alone._replace(
        decode=np.maximum(alone.decode, replicas * decode),
        # A mixed step's host time is added to its kernels: what the others take longer than that remains.
        rows=np.maximum(alone.rows, replicas * matrices - host["step"]),
        attend=np.maximum(alone.attend, replicas * attend),
        prefill=np.maximum(alone.prefill, replicas * chunk),
    )


def _chunk_time(setup: Setup) -> Array:
    """Seconds of arithmetic of chunks' attention on the grid of a step table."""
    prompts, size, prefix = np.meshgrid(PROMPTS, CHUNKS, np.append(0.0, CHUNKS), indexing="ij")
    flop = prompts * size * passes.attention_flop(setup.model, prefix + size / 2, decoding=False)
    rate = platform_of(setup).rate(np.asarray(setup.ffn, np.intp)) * float(np.asarray(setup.decode.devices))
    return np.asarray(flop / rate)


def beside_each_other(
    setup: Setup, batch: int, replicas: int = 1, overlap: bool = True, longest: int | None = None
) -> Deployment:
    """``replicas`` engines on the same devices, each with a cache for ``batch`` requests of the Setup's lengths.

    Raises:
        UsageError: they need more memory than the devices have.
    """
    require_positive(batch=batch, replicas=replicas)
    held = ledger(setup, replace(setup.decode, batch=1.0))
    used = replicas * float(held.weights + held.activations + batch * held.kv) + (replicas - 1) * CONTEXT
    # What an engine reserves holds the first process; each further one has a context of its own.
    if used > float(held.capacity - held.reserved):
        raise UsageError(
            f"{replicas} engines with a cache for {batch} requests each take {used:.3g} of the "
            f"{float(held.capacity - held.reserved):.3g} bytes of {setup.node.device.title}; take fewer"
        )
    one = deploy(setup, most=batch, longest=longest)
    blocks = int(np.ceil(batch * float(np.asarray(setup.isl) + np.asarray(setup.osl)) / BLOCK))
    table = one.table if replicas == 1 else shared_table(setup, one.table, replicas, overlap)
    return replace(one, table=table, instances=(Instances(0, replicas, batch, blocks, 1 / replicas),))


def _explain(
    model: str, gpu: str, devices: int, isl: float, osl: float, spread: float, gain: float, kv: str, weights: str,
    engine: str, replicas: int | None, seed: int,
) -> Explanation:  # fmt: skip
    from nearpeak.case import setup
    from nearpeak.formats import code

    require_positive(isl=isl, osl=osl)
    stored = code(weights)
    own = setup(model, gpu, devices, isl, osl, engine, attention=stored, ffn=stored, experts=stored, kv=code(kv))
    found = advise(own, gain)
    count = found.replicas if replicas is None else replicas
    traffic = lengths(own, spread)
    ways = [
        ("one at the largest batch", found.largest, 1, True),
        ("one at the cap", found.cap, 1, True),
    ] + [(f"{count} at the cap, {how}", found.cap, count, at_once)
         for how, at_once in (("kernels at once", True), ("kernels in turns", False)) if count > 1]  # fmt: skip
    runs = [closed_loop(beside_each_other(own, batch, n, overlap), traffic, seed=seed) for _, batch, n, overlap in ways]
    batches = 2 ** np.arange(int(np.log2(found.largest)) + 1)
    sweep = [closed_loop(beside_each_other(own, int(b)), traffic, seed=seed).token_rate for b in batches]
    single = runs[0].token_rate
    at = pace(own, batches)
    return Explanation(
        {
            "cap": found.cap,
            "replicas": count,
            "single_at_largest_tokens_per_second": single,
            "replicas_tokens_per_second": runs[-2 if count > 1 else -1].token_rate,
            "replicas_in_turns_tokens_per_second": runs[-1].token_rate,
            "closed_form_tokens_per_second": found.overlapped * osl,
        },
        (
            Table(
                "Simulated, all in the same memory",
                tuple(
                    {
                        "way": way,
                        "in_flight": batch * n,
                        "pool_memory": n * batch * found.pool / found.cap,
                        "tokens_per_second": run.token_rate,
                        "over_single": run.token_rate / single,
                        "p50_tpot": run.tpot,
                        "p50_latency": run.latency,
                    }
                    for (way, batch, n, _), run in zip(ways, runs, strict=True)
                ),
            ),
            Table(
                "Simulated, one engine, by requests in flight",
                tuple(
                    {
                        "batch": int(b),
                        "tokens_per_second": rate,
                        "gain_of_doubling_ratio": doubled and doubled / rate,
                        "dram_share": float(at.dram[i] / at.alone[i]),
                        "arithmetic_share": float(at.arithmetic[i] / at.alone[i]),
                    }
                    for i, (b, rate, doubled) in enumerate(zip(batches, sweep, [*sweep[1:], None], strict=True))
                ),
            ),
        ),
        _said(found, count, [run.token_rate / single for run in runs]),
    )


def _said(found: Advice, count: int, over: list[float]) -> tuple[str, ...]:
    if count == 1:
        return ("No second replica fits beside one with a cache for the cap.",)
    return (
        f"{count} replicas with {found.cap} requests each make {over[-2]:.3g} times the tokens of one with "
        f"{found.largest} if their kernels run at once (MPS), {over[-1]:.3g} times if they take turns.",
        "What overlaps is one's host time and arithmetic with the memory traffic of the others.",
    )


TOPIC = Topic(
    "replicas",
    "How many tokens do replicas at the batch knee make beside one engine at the largest batch, in the same memory?",
    "Recasens et al., Mind the Memory Gap: Unveiling GPU Bottlenecks in Large-Batch LLM Inference, 2025 "
    "(arXiv 2503.08311)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("isl", float, "Mean tokens of a prompt.", 161.0),
        Option("osl", float, "Mean tokens of an answer.", 338.0),
        Option("spread", float, "Deviation of lengths over their mean.", 0.5),
        Option("gain", float, "Share by which twice the batch must raise throughput to pay.", 0.1),
        Option("kv", str, "Number format of the cache.", "bf16"),
        Option("weights", str, "Number format of the weights.", "bf16"),
        Option("engine", str, "Serving engine whose host time counts.", "vllm"),
        Option("replicas", int, "Engines on the same devices; as many as fit if not given.", None),
        Option("seed", int, "Of what is drawn at random.", 0),
    ),
    _explain,
    "--model Qwen/Qwen3-0.6B --gpu h200 --isl 200 --osl 300 --gain 0.2",
)
