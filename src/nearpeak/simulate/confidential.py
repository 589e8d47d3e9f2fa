"""What encryption of every copy between host and device costs, and how much of it guessing ahead hides.

A GPU in confidential mode gets nothing in the clear: a host core encrypts each copy with AES-GCM, ten times slower than
the link, and the call returns only when that is done, so that nothing is launched meanwhile. Tan et al., "PipeLLM: Fast
and Confidential Large Language Model Services with Speculative Pipelined Encryption", ASPLOS 2025 (arXiv 2411.03357).
Of layer ``k`` with ``e`` seconds of encryption, ``c`` of copy and ``x`` of products, streamed over two buffers:

    in the clear    max(c, x)      encrypted on demand    e + max(c, x)      encrypted ahead    max(e / threads, c, x)

Ahead means on threads of its own, under the counters of copies to come (``speculation``); what was guessed wrongly is
encrypted on demand. Requests whose caches are swapped out and in are the second case (``swapping``).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.engine import engine_on
from nearpeak.errors import UsageError
from nearpeak.setup import Setup
from nearpeak.simulate.cipher import ENCRYPTION, MODES, NOP, Cipher, Mode, Run, guess
from nearpeak.simulate.layers import fetch_seconds, layer_seconds, layers_of
from nearpeak.simulate.line import flow
from nearpeak.simulate.speculation import Channel, Predictor
from nearpeak.simulate.swapping import lengths, requests_of, swapped
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive

Array = NDArray[np.float64]
BUFFERS = 2
"""Layers on the device at once."""
WARM = 3
"""Passes through all layers that are simulated; the last one counts."""


def layers_ahead(
    encrypt: Array, copies: Array, compute: Array, depth: int = 4, slack: int = 1, wrong: float = 0.0, seed: int = 0
) -> Run:
    """Passes through all layers with speculative encryption; seconds of the last of ``WARM`` passes.

    Args:
        encrypt, copies, compute: seconds of each layer, ``[layers]``.
        depth: ciphertexts that host memory holds ahead. slack: see ``Channel``.
        wrong: share of guesses that are forced to be another layer.
    """
    layers, rng = len(encrypt), np.random.default_rng(seed)
    channel, cipher, predictor = Channel(slack), Cipher(), Predictor()
    for layer in range(layers):
        predictor.left(layer)
    forced: dict[int, int] = {}
    copied, ends, hits, nops, before = 0.0, [0.0] * BUFFERS, 0, 0, (0.0, 0, 0, 0)
    for k in range(WARM * layers):
        if k == (WARM - 1) * layers:
            before = (ends[-1], hits, nops, cipher.encrypted)
        item = k % layers
        asked = ends[-BUFFERS]
        if k >= BUFFERS:
            predictor.left((k - BUFFERS) % layers)
        cipher.until(asked)
        sent = channel.send(item)
        predictor.came(item)
        cipher.drop(sent.lost)
        if sent.ahead is None:
            cipher.encrypted += 1
            ready = cipher.now(asked, encrypt[item])
        else:
            ready = cipher.now(asked, cipher.left.pop(sent.ahead, 0.0))
        hits, nops = hits + (sent.ahead is not None), nops + sent.nops
        guesses: list[tuple[int, int]] = []
        for i, ahead in enumerate(predictor.ahead(depth)):
            # A guess about a certain copy is made once, right or wrong.
            if k + 1 + i not in forced:
                forced[k + 1 + i] = int(rng.integers(1, layers)) if rng.random() < wrong and layers > 1 else 0
            guesses.append(((ahead + forced[k + 1 + i]) % layers, 0))
        guess(channel, cipher, guesses, lambda layer: float(encrypt[layer]))
        copied = max(ready, copied) + sent.nops * NOP + copies[item]
        ends.append(max(copied, ends[-1]) + compute[item])
    return Run(
        ends[-1] - before[0], hits - before[1], layers, nops - before[2], cipher.encrypted - before[3]
    )  # fmt: skip


def layers_seconds(encrypt: ArrayLike, copies: ArrayLike, compute: ArrayLike, mode: Mode) -> Array:
    """Seconds of a pass through all layers when pass follows pass, in the clear or encrypted on demand.

    On demand the caller encrypts the next layer, then launches this one: nothing computes meanwhile. ``ahead`` here
    guesses everything rightly; ``layers_ahead`` does not.

    Args:
        encrypt, copies, compute: seconds of each layer, ``[..., layers]``.
    """
    e, c, x = np.broadcast_arrays(*(np.asarray(a, float) for a in (encrypt, copies, compute)))
    if mode == "on_demand":
        return np.asarray((e + np.maximum(c, np.roll(x, 1, axis=-1))).sum(-1))
    stages, buffers = ([c, x], (BUFFERS,)) if mode == "clear" else ([e, c, x], (4, BUFFERS))
    ends = flow(np.concatenate([np.stack(stages, -1)] * WARM, axis=-2), buffers)[..., -1]
    layers = e.shape[-1]
    return np.asarray(ends[..., -1] - ends[..., -1 - layers])


@dataclass(frozen=True)
class Streaming:
    """Layers of a model on one device that stream from its host, in confidential mode; seconds of each, ``[layers]``.

    Attributes:
        encrypt: on one thread. copies: over the link. prompt, token: products of a prefill and of a decode pass.
    """

    encrypt: Array
    copies: Array
    prompt: Array
    token: Array


def streaming(setup: Setup, batch: float, encryption: float = ENCRYPTION) -> Streaming:
    """Seconds of the layers of a Setup whose weights all lie in host memory. ``encryption``: bytes/s of one thread."""
    size, host, users = layers_of(setup).size, engine_on(setup.engine, setup.node), np.asarray(float(batch))
    prompt, token = (layer_seconds(setup, host, users, decoding) for decoding in (False, True))
    return Streaming(size / encryption, fetch_seconds(setup, size, 1), prompt, token)


def request_seconds(
    at: Streaming, osl: float, mode: Mode, threads: int = 1, wrong: float = 0.0, seed: int = 0
) -> float:
    """Seconds of a batch of requests of ``osl`` tokens: a prefill pass and ``osl - 1`` decode passes."""

    def one(compute: Array) -> float:
        encrypt = at.encrypt / threads
        if mode == "ahead":
            return layers_ahead(encrypt, at.copies, compute, wrong=wrong, seed=seed).seconds
        return float(layers_seconds(encrypt, at.copies, compute, mode))

    return one(at.prompt) + (osl - 1) * one(at.token)


def _losses(seconds: dict[Mode, float]) -> tuple[float, float]:
    """Shares of throughput lost on demand and ahead, against in the clear."""
    return 1 - seconds["clear"] / seconds["on_demand"], 1 - seconds["clear"] / seconds["ahead"]


def _explain(
    model: str,
    gpu: str,
    swap: str,
    isl: float,
    osl: float,
    batch: float,
    requests: int,
    samples: int,
    threads: int,
    encryption: float,
    wrong: float,
    weights: str,
    engine: str,
    seed: int,
) -> Explanation:
    from nearpeak.case import setup
    from nearpeak.formats import code

    require_positive(isl=isl, osl=osl, batch=batch, requests=requests, samples=samples, threads=threads)
    require_positive(encryption=encryption)
    if swap not in ("layers", "requests"):
        raise UsageError(f"swap must be layers or requests, not {swap!r}")
    if not 0 <= wrong < 1:
        raise UsageError(f"wrong must be 0 or more and below 1, not {wrong:g}")
    stored = code(weights)
    own = setup(model, gpu, 1, isl, osl, engine, attention=stored, ffn=stored, experts=stored)
    counts = sorted({1, 2, 4, 8, 16, threads})
    if swap == "layers":
        at = streaming(own, batch, encryption)
        times = {n: {m: request_seconds(at, osl, m, n, wrong, seed) for m in MODES} for n in counts}
        tokens, extra = batch * osl, {"encryption_time": float(at.encrypt.sum()), "copy_time": float(at.copies.sum())}
    else:
        isls, osls = lengths(isl, requests, seed), lengths(osl, requests, seed + 1)
        queue = requests_of(own, isls, osls, samples)
        runs = {n: {m: swapped(queue, m, encryption, n) for m in MODES} for n in counts}
        times = {n: {m: run.seconds for m, run in by.items()} for n, by in runs.items()}
        tokens, found = float(samples * osls.sum()), runs[threads]["ahead"]
        extra = {"swaps": found.copies, "guessed_share": found.hits / max(found.copies, 1), "nops": found.nops}
    losses = {n: _losses(by) for n, by in times.items()}
    on_demand, ahead = losses[threads]
    rates = {f"{m}_tokens_per_second": tokens / times[threads][m] for m in MODES}
    return Explanation(
        {**rates, "on_demand_loss_share": on_demand, "ahead_loss_share": ahead, **extra},
        (
            Table.of(
                "Throughput lost, by encrypting threads",
                threads=counts,
                on_demand_loss_share=[losses[n][0] for n in counts],
                ahead_loss_share=[losses[n][1] for n in counts],
            ),
        ),
        (
            f"Encrypted on demand by the thread that asks, as drivers do, {100 * losses[1][0]:.3g} % of throughput is "
            f"lost; ahead, on {threads} thread{'s' * (threads > 1)}, {100 * ahead:.3g} %.",
        ),
    )


TOPIC = Topic(
    "confidential",
    "What does confidential mode cost where weights or caches are swapped, and what does encrypting ahead save?",
    "Tan et al., PipeLLM: Fast and Confidential Large Language Model Services with Speculative Pipelined Encryption, "
    "ASPLOS 2025 (arXiv 2411.03357)",
    (
        MODEL,
        GPU,
        Option("swap", str, "layers (weights stream from the host) or requests (caches are swapped out).", "layers"),
        Option("isl", float, "Mean tokens of a prompt.", 128.0),
        Option("osl", float, "Mean tokens of an answer.", 32.0),
        Option("batch", float, "Requests at once, where layers stream.", 64.0),
        Option("requests", int, "Requests that are served, where caches are swapped.", 100),
        Option("samples", int, "Answers to each prompt, where caches are swapped.", 1),
        Option("threads", int, "Threads that encrypt.", 8),
        Option("encryption", float, "Bytes/s that one thread encrypts.", ENCRYPTION),
        Option("wrong", float, "Share of guesses that are forced to be wrong, where layers stream.", 0.0),
        Option("weights", str, "Number format of the weights.", "bf16"),
        Option("engine", str, "Serving engine whose host time counts.", "vllm"),
        Option("seed", int, "Of lengths and wrong guesses.", 0),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-70B --gpu h100 --batch 64",
)
