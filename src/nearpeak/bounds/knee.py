"""Where a larger batch stops to pay, and what the memory beyond it is good for (Recasens et al., arXiv 2503.08311).

A decode step of ``B`` requests takes ``a + b B`` seconds: ``a`` to read the weights once and for the host, ``b`` to
read one request's cache. Matrices do ``B`` times the work on the same bytes, but attention reads as much again for each
request: its FLOP per byte do not grow with the batch, so that memory stays the limit and throughput ``B / (a + b B)``
saturates. With ``c`` seconds of prefill for each request of ``n`` later tokens, twice the batch makes ``1 + g`` times
the tokens where

    B = a (1 - g) / (2 g (b + c / n))

Beyond that knee memory buys little as cache. Given to further replicas of the model it fills the bandwidth that one
leaves while it waits for its host or multiplies: ``R`` replicas are ``R`` times as fast, until memory never rests.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.bounds import passes
from nearpeak.cost import ledger, platform_of, predict
from nearpeak.cost.engine import engine
from nearpeak.cost.memory import CONTEXT
from nearpeak.cost.operators import STREAMED
from nearpeak.errors import UsageError
from nearpeak.formats import BYTES
from nearpeak.setup import Setup
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload import Architecture

Array = NDArray[np.float64]


def attention_intensity(model: Architecture, context: ArrayLike, element: ArrayLike = 2.0) -> Array:
    """FLOP per byte of decoding attention, at any batch. ``element``: bytes of a cached value."""
    return np.asarray(passes.attention_flop(model, context) / passes.cache_read(model, context, element))


def matrix_intensity(model: Architecture, batch: ArrayLike, weight: ArrayLike = 2.0) -> Array:
    """FLOP per byte of a decode step's matrices: in a dense model proportional to the batch."""
    users = np.asarray(batch, float)
    read = passes.met_parameters(model, users) * np.asarray(weight)
    return np.asarray(passes.matrix_flop(model) * users / read)


def knee_batch(fixed: ArrayLike, each: ArrayLike, gain: ArrayLike = 0.1) -> Array:
    """The batch whose doubling raises throughput by the share ``gain``.

    Args:
        fixed: seconds of a step at any batch. each: seconds a request adds to a step, its share of prefill included.
        gain: above 0 and below 1.

    Raises:
        UsageError: a time is not above 0, or ``gain`` is not between 0 and 1.
    """
    require_positive(fixed=fixed, each=each, gain=gain)
    if not (np.asarray(gain) < 1).all():
        raise UsageError(f"gain must be below 1 (twice the batch makes at most twice the tokens), not {np.max(gain):g}")
    gain = np.asarray(gain, float)
    return np.asarray(np.asarray(fixed) * (1 - gain) / (2 * gain * np.asarray(each)))


@dataclass(frozen=True)
class Pace:
    """What a request takes of one replica on one device, by batch; arrays ``[batch]``.

    Attributes:
        batch: requests in flight. alone: seconds of a replica that has the device for itself, its host included.
        kernels: the same where the host takes no time. dram, arithmetic: what it moves and computes, in seconds at the
            datasheet's peaks.
    """

    batch: Array
    alone: Array
    kernels: Array
    dram: Array
    arithmetic: Array


def pace(setup: Setup, batch: ArrayLike) -> Pace:
    """Seconds of a request of ``setup`` (``isl`` tokens in, ``osl`` out) when ``batch`` are in flight.

    Raises:
        UsageError: an answer has fewer than two tokens, so that nothing is decoded in a batch.
    """
    isl, osl = np.asarray(setup.isl, float), np.asarray(setup.osl, float)
    if not (osl >= 2).all():
        raise UsageError(f"osl must be 2 or more, not {osl.min():g}: a batch decodes what follows the first token")
    users, context, later = np.asarray(batch, float), isl + osl / 2, osl - 1
    at, own = platform_of(setup), replace(setup, decode=replace(setup.decode, batch=users))
    idle = replace(engine(setup.engine), step=0.0, sequence=0.0, layer=0.0, request=0.0)
    model, device, devices = setup.model, setup.node.device, np.asarray(setup.decode.devices, float)
    element, weight = BYTES[np.asarray(setup.kv, np.intp)], BYTES[np.asarray(setup.ffn, np.intp)]
    read = passes.met_parameters(model, users) * weight + users * passes.cache_read(model, context, element)
    flop = users * (passes.matrix_flop(model) + passes.attention_flop(model, context))
    flop_prompt = passes.prefill_matrix_flop(model, isl) + passes.prefill_attention_flop(model, isl)
    bandwidth, rate = device.memory_bandwidth * devices, at.rate(np.asarray(setup.ffn, np.intp)) * devices
    return Pace(
        batch=users,
        alone=1 / predict(at, own).request_rate,
        kernels=1 / predict(at, own, idle).request_rate,
        # A prompt meets the weights with the step that it comes in, and writes its cache.
        dram=(passes.cache_bytes(model, isl, element) + later * read / users) / bandwidth,
        arithmetic=(flop_prompt + later * flop / users) / rate,
    )


def replicas_rate(at: Pace, replicas: ArrayLike, overlap: bool = True) -> Array:
    """Requests/s of ``replicas`` that share a device, each with ``at.batch`` in flight.

    While one waits for its host another computes. Where kernels of several processes run at once (NVIDIA MPS), what
    bounds them together is the bandwidth that streaming kernels reach, or the arithmetic; where they take turns, the
    device's own time is.
    """
    together = np.maximum(at.dram / STREAMED, at.arithmetic) if overlap else at.kernels
    return np.asarray(np.minimum(np.asarray(replicas, float) / at.alone, 1 / together))


@dataclass(frozen=True)
class Advice:
    """A cap on the batch and what the freed memory gives.

    Attributes:
        cap: requests in flight of a replica; ``largest``: that memory would hold. ``found``: whether ``cap`` is a knee;
            if not, memory ends before it.
        pool, freed: bytes of cache at the cap, and that it leaves of the largest.
        replicas: that fit beside each other, each with its weights and a pool for the cap.
        single: requests/s of one replica at the largest batch. overlapped, in_turns: of ``replicas`` at the cap, whose
            kernels run at once, or one after another.
    """

    cap: int
    largest: int
    found: bool
    pool: float
    freed: float
    replicas: int
    single: float
    overlapped: float
    in_turns: float


def advise(setup: Setup, gain: float = 0.1) -> Advice:
    """The batch from which on no doubling raises throughput by the share ``gain``, and the replicas that then fit.

    ``setup`` holds one configuration; the batch of its pool is not read.

    Raises:
        UsageError: ``gain`` is not between 0 and 1, or not even one request fits.
    """
    knee_batch(1.0, 1.0, gain)
    one = ledger(setup, replace(setup.decode, batch=1.0))
    room = float(one.capacity - one.reserved - one.weights - one.activations)
    each = float(one.kv)
    largest = int(room // each)
    if largest < 1:
        raise UsageError(
            f"{setup.model.name} with one request takes {float(one.used):.3g} bytes and does not fit the "
            f"{float(one.capacity):.3g} bytes of {setup.node.device.title}: take more devices or fewer bits"
        )
    batch = np.unique(np.rint(np.geomspace(1, largest, min(largest, 400))))
    seconds, doubled = pace(setup, batch).alone, pace(setup, 2 * batch).alone
    paying = np.flatnonzero(seconds / doubled >= 1 + gain)
    first = int(paying[-1]) + 1 if paying.size else 0
    cap = int(batch[first]) if first < batch.size else largest
    held = float(one.weights + one.activations) + cap * each
    # What an engine reserves holds the first process; each further one has a context of its own.
    count = max(1, int((float(one.capacity - one.reserved) + CONTEXT) // (held + CONTEXT)))
    at_cap, at_most = pace(setup, cap), pace(setup, largest)
    return Advice(
        cap, largest, first < batch.size, cap * each, (largest - cap) * each, count,
        float(1 / at_most.alone), *(float(replicas_rate(at_cap, count, overlap)) for overlap in (True, False)),
    )  # fmt: skip


def _explain(
    model: str, gpu: str, devices: int, isl: float, osl: float, gain: float, kv: str, weights: str, engine: str
) -> Explanation:
    from nearpeak.case import setup
    from nearpeak.formats import code

    require_positive(isl=isl, osl=osl)
    stored = code(weights)
    own = setup(
        model, gpu, devices, isl, osl, engine, attention=stored, ffn=stored, experts=stored, kv=code(kv)
    )  # fmt: skip
    found = advise(own, gain)
    batch = np.unique(np.append(2.0 ** np.arange(int(np.log2(found.largest)) + 1), [found.cap, found.largest]))
    at, doubled = pace(own, batch), pace(own, 2 * batch)
    element, weight = (BYTES[code(name)] for name in (kv, weights))
    knee = pace(own, found.cap)
    said = (
        f"From {found.cap} requests on, twice as many make less than {100 * gain:.3g} % more tokens."
        if found.found
        else f"Memory ends at {found.largest} requests, before the knee: a larger batch still pays."
    )
    beside = (
        "No second replica fits beside one with a pool for the cap."
        if found.replicas == 1
        else f"{found.replicas} replicas at the cap make {found.overlapped / found.single:.3g} times the tokens of one "
        f"at {found.largest} if their kernels run at once (MPS), and {found.in_turns / found.single:.3g} times as "
        "many if they take turns."
    )
    limit = "memory bandwidth" if knee.dram >= knee.arithmetic else "arithmetic"
    return Explanation(
        {
            "cap": found.cap,
            "largest_batch": found.largest,
            "pool_memory": found.pool,
            "freed_memory": found.freed,
            "replicas": found.replicas,
            "single_at_largest_tokens_per_second": found.single * osl,
            "replicas_overlapped_tokens_per_second": found.overlapped * osl,
            "replicas_in_turns_tokens_per_second": found.in_turns * osl,
            "attention_intensity": float(attention_intensity(own.model, isl + osl / 2, element)),
            "matrix_intensity_at_cap": float(matrix_intensity(own.model, found.cap, weight)),
            "ridge_intensity": float(platform_of(own).rate(np.asarray(stored))) / own.node.device.memory_bandwidth,
        },
        (
            Table.of(
                "Seconds of a request, by requests in flight",
                batch=batch,
                tokens_per_second=osl / at.alone,
                gain_of_doubling_ratio=at.alone / doubled.alone,
                request_time=at.alone,
                kernels_time=at.kernels,
                dram_time=at.dram,
                arithmetic_time=at.arithmetic,
            ),
        ),
        (
            f"{said} At the cap the limit of the device is {limit}.",
            beside,
        ),
    )  # fmt: skip


TOPIC = Topic(
    "knee",
    "From which batch on does a larger one stop to pay, and what is the memory beyond it good for?",
    "Recasens et al., Mind the Memory Gap: Unveiling GPU Bottlenecks in Large-Batch LLM Inference, 2025 "
    "(arXiv 2503.08311)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("isl", float, "Tokens of a prompt.", 1000.0),
        Option("osl", float, "Tokens of an answer.", 200.0),
        Option("gain", float, "Share by which twice the batch must raise throughput to pay.", 0.1),
        Option("kv", str, "Number format of the cache.", "bf16"),
        Option("weights", str, "Number format of the weights.", "bf16"),
        Option("engine", str, "Serving engine whose host time counts.", "vllm"),
    ),
    _explain,
    "--model Qwen/Qwen3-0.6B --gpu h200 --isl 200 --osl 300 --gain 0.2",
)
