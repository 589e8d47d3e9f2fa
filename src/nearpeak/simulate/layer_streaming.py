"""A model that its devices hold, or one whose layers stream to them: which fits, which is faster, with what batch.

Aminabadi et al., "DeepSpeed Inference: Enabling Efficient Inference of Transformer Models at Unprecedented Scale",
SC 2022 (arXiv 2207.00032). Two ways to serve:

- *resident*: weights stay on the devices, cut by tensor, pipeline and expert parallelism. A pipeline of ``p`` stages
  runs a prompt batch as ``m`` micro-batches in ``(m + p - 1) t(b / m)``, and a token of all requests in
  ``max(m, p) t(b / m)``: many micro-batches shrink the bubble of prefill, while each further one makes decode read the
  weights once more. So the two have counts of their own (the paper's hybrid schedule).
- *stream*: weights lie in host memory or on NVMe, and pass through ``n`` buffers on the device, layer ``k + 1`` on its
  way while layer ``k`` computes. A pass then takes the longer of all fetches and all products, and what the weights
  leave of memory goes to the batch, which makes the products the longer of the two. Of several devices each fetches its
  part over its own link, an all-gather joins the parts, and each serves a batch of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import decode, ledger, platform_of, prefill
from nearpeak.cost.engine import Engine, engine_on
from nearpeak.cost.memory import largest_batch
from nearpeak.cost.platform import Platform
from nearpeak.cost.serving import launched
from nearpeak.cost.step import depth, unevenness
from nearpeak.errors import UsageError
from nearpeak.hardware import Link, link
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.layers import fetch_seconds, layer_seconds, layers_of, scores_seconds, stream_memory
from nearpeak.simulate.line import passes
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload import Experts, parameters

Array = NDArray[np.float64]
Goal = Literal["throughput", "latency"]
GOALS = ("throughput", "latency")
HOST_RESERVED = 0.05
"""Share of host memory that the operating system and the engine's own buffers take: assumed."""
MOST_MICROBATCHES = 8
"""Micro-batches that are tried, at most so many for each stage."""


@dataclass(frozen=True)
class Plan:
    """One way to serve, and what it gives.

    Attributes:
        mode: resident or stream. source: where streamed weights lie (host, nvme), empty where resident.
        devices, tp, dp, pp, ep: the layout; ``dp`` streaming devices have a batch each.
        batch: requests in all. prefill_microbatches, decode_microbatches: that a pipeline cuts them into.
        memory: bytes on the fullest device. ttft, tpot, latency: seconds, of a whole batch at once.
        throughput: output tokens/s. flops: FLOP/s in matrices, per device.
    """

    mode: Literal["resident", "stream"]
    source: str
    devices: int
    tp: int
    dp: int
    pp: int
    ep: int
    batch: int
    prefill_microbatches: int
    decode_microbatches: int
    memory: float
    ttft: float
    tpot: float
    latency: float
    throughput: float
    flops: float


def flop(setup: Setup) -> float:
    """FLOP of one request in all matrices: its whole prompt and answer; the head multiplies each answer token alone."""
    model = setup.model
    head = float(model.vocab * model.hidden)
    layers = float(parameters(model).active) - head
    return 2.0 * (layers * (float(setup.isl) + float(setup.osl) - 1) + head * float(setup.osl))


def resident(setup: Setup, devices: int, batch: int | None = None, eager: bool = False) -> list[Plan]:
    """Every layout of a model over ``devices`` that holds it and ``batch`` requests (None: powers of two, the most)."""
    at, host, model = platform_of(setup), engine_on(setup.engine, setup.node), setup.model
    routed = [b.ffn for b in model.blocks if isinstance(b.ffn, Experts)]
    heads = min((getattr(b.mixer, "heads", devices) for b in model.blocks if b.mixer is not None), default=devices)
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for tp, dp in product(sizes, sizes if routed else [1]):
        if devices % (tp * dp) or heads % tp or (pp := devices // (tp * dp)) > model.layers:
            continue
        for ep in {1, tp * dp} if routed and dp == 1 else {tp * dp if routed else 1}:
            if any(r.count % ep for r in routed):
                continue
            pool = Pool(tp=tp, dp=dp, pp=pp, moe_tp=tp * dp // ep if routed else 1, moe_ep=ep)
            for users in _batches(int(largest_batch(setup, pool)) * dp, batch):
                held = ledger(setup, replace(pool, batch=np.ceil(users / dp)))
                if bool(held.fits):
                    found.append(_resident(at, host, setup, pool, users, float(held.used), eager))
    return found


def _batches(most: int, asked: int | None) -> list[int]:
    if asked is not None:
        return [asked]
    return sorted({*(2**k for k in range(max(most, 0).bit_length())), most} - {0} if most > 0 else [])


def _resident(at: Platform, host: Engine, setup: Setup, pool: Pool, users: int, memory: float, eager: bool) -> Plan:
    pp, dp = int(pool.pp), int(pool.dp)
    each = users / dp
    counts = np.unique(np.clip(2 ** np.arange(int(np.log2(MOST_MICROBATCHES * pp)) + 1), 1, max(1, int(each))))
    counts = np.unique(np.append(counts[: 1 if pp == 1 else None], min(pp, max(1, int(each)))))
    context = np.asarray(setup.isl, float) + np.asarray(setup.osl, float) / 2
    # A pass through all stages costs as many stages' times; the longest stage sets the pace.
    written: tuple[Array | float, ...] = (0.0, 0.0)
    if eager:
        span = ((each / counts, setup.isl, setup.isl), (each / counts * pp, 1.0, context))
        written = tuple(sum(b.count * scores_seconds(at, b, *s) for b in setup.model.blocks) / pool.tp for s in span)
    kernels = prefill(at, setup, pool, each / counts, setup.isl).total + written[0]  # type: ignore[arg-type]
    first = launched(kernels, depth(setup.model), host, False)
    stage = first * unevenness(setup, pool) / pp
    prompt = (counts + pp - 1) * stage
    kernels = decode(at.in_graph(), setup, pool, each / counts * pp, context).total * host.graph + written[1]
    # With fewer micro-batches than stages, a token waits for the way through all of them.
    token = np.maximum(counts, pp) * kernels / pp + host.step + host.sequence * each
    m, n = int(prompt.argmin()), int(token.argmin())
    return _plan(setup, pool, users, memory, float(prompt[m]), float(prompt[m]), float(token[n]), int(counts[m]),
                 int(counts[n]))  # fmt: skip


def _plan(
    setup: Setup,
    pool: Pool,
    users: int,
    memory: float,
    ttft: float,
    prompt: float,
    token: float,
    m: int = 1,
    n: int = 1,
    source: str = "",
) -> Plan:
    """``prompt``: seconds of a prefill pass when batch follows batch; ``ttft``: of the first."""
    osl, devices = float(setup.osl), int(pool.instance_devices)
    rate = users / (prompt + (osl - 1) * token)
    layout = (devices, int(pool.tp), int(pool.dp), int(pool.pp), int(pool.moe_ep))
    return Plan("stream" if source else "resident", source, *layout, users, m, n, memory, ttft, token,
                ttft + (osl - 1) * token, rate * osl, rate * flop(setup) / devices)  # fmt: skip


def streamed(
    setup: Setup,
    devices: int = 1,
    batch: int | None = None,
    buffers: int = 2,
    host_memory: float | None = None,
    nvme: Link | None = None,
    drives: int = 1,
    eager: bool = False,
) -> list[Plan]:
    """Streaming with ``batch`` requests in all (None: powers of two and the most); empty where memory holds not one.

    Weights lie in host memory where it holds them, else on ``drives`` of ``nvme``.
    """
    held, host = layers_of(setup), engine_on(setup.engine, setup.node)
    memory = setup.node.host_memory if host_memory is None else host_memory
    source = "host" if held.size.sum() + held.rest <= memory * (1 - HOST_RESERVED) else "nvme"
    none, one = (float(stream_memory(setup, held, b, buffers)) for b in (0, 1))
    most = int((setup.node.device.memory_capacity - none) // (one - none))
    wanted = _batches(most * devices, batch)
    each = np.ceil(np.asarray(wanted, float) / devices)
    if not (users := each[each <= most]).size:
        return []
    drive = (nvme or link("nvme_gen4")) if source == "nvme" else None
    fetch = fetch_seconds(setup, held.size, devices, drive, drives)
    ttft, prompt = passes(fetch, layer_seconds(setup, host, users, decoding=False, eager=eager), buffers)
    _, token = passes(fetch, layer_seconds(setup, host, users, decoding=True, eager=eager), buffers)
    used, pool = stream_memory(setup, held, users, buffers), Pool(dp=devices)
    chosen = [w for w, e in zip(wanted, each, strict=True) if e <= most]
    return [
        _plan(setup, pool, w, float(u), float(a), float(b), float(c), source=source)
        for w, u, a, b, c in zip(chosen, used, ttft, prompt, token, strict=True)
    ]


def best(plans: Sequence[Plan], goal: Goal) -> Plan:
    """The plan of the most output tokens/s, or of the shortest latency (of equal ones the fastest)."""
    if goal == "throughput":
        return max(plans, key=lambda p: p.throughput)
    return min(plans, key=lambda p: (p.latency, -p.throughput))


def choose(
    setup: Setup,
    devices: int = 1,
    goal: Goal = "throughput",
    batch: int | None = None,
    eager: bool = False,
    **stream: Any,  # noqa: ANN401 (of ``streamed``)
) -> Plan:
    """Resident or stream, the layout and the batch.

    A batch that is asked for streams exactly where no layout holds weights and cache. Where the batch is free, so is
    the mode: streaming may win throughput by the larger batch that it has room for.

    Raises:
        UsageError: an unknown goal, a number below 1, or nothing fits, not even by streaming.
    """
    if goal not in GOALS:
        raise UsageError(f"goal must be {' or '.join(GOALS)}, not {goal!r}")
    require_positive(devices=devices, isl=setup.isl, osl=setup.osl)
    if batch is not None:
        require_positive(batch=batch)
    staying = resident(setup, devices, batch, eager)
    if staying and batch is not None:
        return best(staying, goal)
    if plans := staying + streamed(setup, devices, batch, eager=eager, **stream):
        return best(plans, goal)
    held, at = layers_of(setup), setup.node.device
    need = float(stream_memory(setup, held, np.ceil((batch or 1) / devices), stream.get("buffers", 2)))
    raise UsageError(
        f"{setup.model.name} does not fit: streaming needs {need:.3g} bytes on each of {devices} {at.title}, which has "
        f"{at.memory_capacity:.3g}; ask for a smaller batch, fewer tokens, fewer bits or more devices"
    )


def _explain(
    model: str,
    gpu: str,
    devices: int,
    isl: float,
    osl: float,
    goal: str,
    batch: int | None,
    buffers: int,
    host_memory: float | None,
    nvme: str,
    drives: int,
    weights: str,
    engine: str,
    eager: bool,
) -> Explanation:
    from nearpeak.case import setup
    from nearpeak.formats import code

    require_positive(isl=isl, osl=osl, buffers=buffers, drives=drives)
    stored = code(weights)
    own = setup(model, gpu, devices, isl, osl, engine, attention=stored, ffn=stored, experts=stored)
    given: dict[str, Any] = {"buffers": buffers, "host_memory": host_memory, "nvme": link(nvme), "drives": drives}
    found = choose(own, devices, goal, batch, eager, **given)  # type: ignore[arg-type]
    every = streamed(own, devices, None, eager=eager, **given)
    peak = float(platform_of(own).rate(np.asarray(stored, np.intp)))
    staying = resident(own, devices, batch, eager)
    says = [
        f"{found.mode.capitalize()}, {found.batch} requests: {found.throughput:.4g} output tokens/s and "
        f"{found.flops / 1e12:.3g} TFLOP/s of the {peak / 1e12:.4g} that each device peaks at.",
        "Weights and cache fit on the devices." if staying else "No layout holds weights and cache on the devices.",
    ]
    if staying and found.mode == "stream":
        ratio = found.throughput / best(staying, "throughput").throughput
        says.append(f"Streaming wins by its larger batch: {ratio:.3g} times the tokens of weights that stay.")
    figures = {
        "mode": found.mode, "source": found.source or "device", "batch": found.batch, "tp": found.tp, "dp": found.dp,
        "pp": found.pp, "ep": found.ep, "prefill_microbatches": found.prefill_microbatches,
        "decode_microbatches": found.decode_microbatches, "device_memory": found.memory, "ttft": found.ttft,
        "tpot": found.tpot, "tokens_per_second": found.throughput, "flops": found.flops,
        "peak_share": found.flops / peak,
    }  # fmt: skip
    tables: tuple[Table, ...] = ()
    if every:
        tables = (
            Table.of(
                "Streaming, by requests",
                batch=[p.batch for p in every],
                prefill_time=[p.ttft for p in every],
                token_time=[p.tpot for p in every],
                tokens_per_second=[p.throughput for p in every],
                peak_share=[p.flops / peak for p in every],
                device_memory=[p.memory for p in every],
            ),
        )
    return Explanation(figures, tables, tuple(says))


TOPIC = Topic(
    "layer-streaming",
    "Weights on the devices, or streamed to them layer by layer from host memory or NVMe?",
    "Aminabadi et al., DeepSpeed Inference: Enabling Efficient Inference of Transformer Models at Unprecedented Scale, "
    "SC 2022 (arXiv 2207.00032)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices.", 1),
        Option("isl", float, "Tokens of a prompt.", 2048.0),
        Option("osl", float, "Tokens of an answer.", 1.0),
        Option("goal", str, "throughput or latency.", "throughput"),
        Option("batch", int, "Requests served together; chosen if not given.", None),
        Option("buffers", int, "Layers of weights on a device at once.", 2),
        Option("host_memory", float, "Bytes of host memory; the server's own if not given.", None),
        Option("nvme", str, "Kind of drive for weights that host memory does not hold.", "nvme_gen4"),
        Option("drives", int, "Such drives.", 1),
        Option("weights", str, "Number format of the weights.", "bf16"),
        Option("engine", str, "Serving engine whose host time counts.", "vllm"),
        Option("eager", bool, "Attention writes its scores to memory, as torch's own operators do.", False),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-70B --gpu a6000 --isl 2048 --osl 1",
)
