"""Throughput of a mixture of experts whose weights and KV cache live in host memory, bounded in two stages.

The GPU multiplies; each iteration streams the weights to it over the link, and the host attends over the KV cache that
it holds. ``ideal`` is the limit that no schedule passes: how many requests host memory holds says how many tokens share
one pass of the weights. ``estimate`` is what a schedule reaches that pages the cache, overlaps prefill with decode, and
has a first and a last request. Yuan, Ma, Talati, "MoE-Lens: Towards the Hardware Limit of High-Throughput MoE LLM
Serving Under Resource Constraints", arXiv 2504.09345 (2025).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import platform
from nearpeak.errors import UsageError
from nearpeak.formats import BYTES, code
from nearpeak.hardware import Node, link, node_of
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload import (
    Architecture,
    Attention,
    Experts,
    LatentAttention,
    Mixer,
    parameters,
    read,
    sequence_elements,
    tensors,
)

Array = NDArray[np.float64]

LIMITS = ("host memory", "link", "GPU", "host bandwidth")
"""What can bind, in the order of the last axis of ``Bound.limits``."""
HOST_RESERVED = 0.05
"""Share of host memory that the operating system and the engine's own buffers take: assumed."""
GPU_RESERVED = 0.10
"""Share of GPU memory that an engine leaves alone (vLLM's ``gpu_memory_utilization`` 0.9)."""
BUFFERS = 2
"""Layers of weights on the GPU at once: one is multiplied while the next arrives."""


@dataclass(frozen=True, eq=False)
class Case:
    """One hybrid run, or arrays of them that broadcast.

    Attributes:
        streamed: bytes of weights that cross the link in each iteration. With some hundred tokens in flight every
            expert is met, so these are all weights that the GPU does not keep.
        cache: bytes of host memory that are left for keys and values. kv: bytes that one token adds to them.
        flops: FLOP of one token through all matrices. prompt_flops: FLOP of the attention over one prompt.
        rate: FLOP/s of the GPU. link, host_bandwidth: bytes/s from host to GPU, and of host memory.
        isl, osl: mean tokens of a prompt and of an answer. requests: how many are served.
        longest: tokens of the longest answer, which the whole run ends with; None for ``osl``.
        page: tokens in a page of the cache.
    """

    streamed: ArrayLike
    cache: ArrayLike
    kv: ArrayLike
    flops: ArrayLike
    prompt_flops: ArrayLike
    rate: ArrayLike
    link: ArrayLike
    host_bandwidth: ArrayLike
    isl: ArrayLike
    osl: ArrayLike
    requests: ArrayLike
    longest: ArrayLike | None = None
    page: ArrayLike = 16

    def __post_init__(self) -> None:
        require_positive(**{n: getattr(self, n) for n in ("kv", "flops", "rate", "isl", "osl", "requests")})
        require_positive(link=self.link, host_bandwidth=self.host_bandwidth, page=self.page)
        for name in ("streamed", "cache", "prompt_flops"):
            # An infinite cache is how one asks what a run would do without the host's limit.
            if not np.all(np.asarray(getattr(self, name), float) >= 0):
                raise UsageError(f"{name.replace('_', ' ')} must be 0 or more, not {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class Bound:
    """Output tokens per second, and what binds.

    Attributes:
        throughput: output tokens/s, shape of the case.
        limits: the same if only one thing limited, ``[..., len(LIMITS)]``.
        binding: index in ``LIMITS`` of the least.
        in_flight: requests decoded at once.
    """

    throughput: Array
    limits: Array
    binding: NDArray[np.intp]
    in_flight: Array

    @property
    def named(self) -> NDArray[np.str_]:
        """The binding limit in words."""
        return np.asarray(np.array(LIMITS)[self.binding])


def _arrays(case: Case) -> dict[str, Array]:
    given = vars(case) | {"longest": case.osl if case.longest is None else case.longest}
    wide = np.broadcast_arrays(*(np.asarray(v, float) for v in given.values()))
    return dict(zip(given, wide, strict=True))


def ideal(case: Case) -> Bound:
    """The first stage: what no schedule passes.

    A request stays for ``osl`` iterations and holds ``isl + osl / 2`` tokens on average, so host memory holds
    ``cache / (kv (isl + osl / 2))`` requests, each of which gets one token from each pass of the weights over the link:
    in the paper's words, parallelism-memory efficiency times memory. Beyond that, the GPU has to multiply prompt and
    answer, and the host to read the cache once for each token.
    """
    c = _arrays(case)
    held = c["isl"] + c["osl"] / 2
    passes = np.divide(c["link"], c["streamed"], out=np.full_like(held, np.inf), where=c["streamed"] > 0)
    room = c["cache"] / (c["kv"] * held)
    with np.errstate(invalid="ignore"):  # no room, and nothing to stream: nothing runs
        memory = np.where(room > 0, room * passes, 0.0)
    work = c["flops"] * (c["isl"] + c["osl"]) + c["prompt_flops"]
    limits = np.stack(
        [
            memory,
            c["requests"] * passes,
            c["rate"] * c["osl"] / work,
            c["host_bandwidth"] / (c["kv"] * held),
        ],
        axis=-1,
    )
    return Bound(limits.min(axis=-1), limits, limits.argmin(axis=-1), np.minimum(room, c["requests"]))


def estimate(case: Case) -> Bound:
    """The second stage: a schedule with a paged cache that mixes prefill into decode.

    Each iteration admits the prompts that the cache can carry in the long run, ``pages / sum of a request's pages over
    its iterations`` (all at once where all fit whole), and streams the weights while the GPU multiplies the prompts and
    all running requests' tokens and the host attends. It lasts as long as the slowest of the three. Over the first
    ``osl`` iterations the batch fills, over the last it drains, and the longest answer's last tokens have the stream of
    weights to themselves.

    A cache without room for one whole request gives 0 tokens/s. ``limits`` hold the run as one resource alone would
    time it; for host memory, as the link times it at the concurrency that memory allows.
    """
    c = _arrays(case)
    pages = np.floor(c["cache"] / (c["kv"] * c["page"]))
    longest = np.ceil((c["isl"] + c["osl"]) / c["page"])
    # The mean over a request's iterations of its pages: half a page is empty on average.
    held = (c["isl"] + (c["osl"] + 1) / 2) / c["page"] + (c["page"] - 1) / (2 * c["page"])
    room = np.where(pages >= longest, np.maximum(pages / held, 1.0), 0.0)
    fit = pages >= c["requests"] * longest
    admitted = np.where(fit, c["requests"], np.minimum(np.where(room > 0, room, 1.0) / c["osl"], c["requests"]))

    stream = c["streamed"] / c["link"]
    prompt = (c["flops"] * c["isl"] + c["prompt_flops"]) / c["rate"]
    peak = np.minimum(admitted * c["osl"], c["requests"])
    tokens = peak * c["flops"] / c["rate"]
    attended = peak * c["kv"] * (c["isl"] + c["osl"] / 2) / c["host_bandwidth"]
    filling = np.minimum(c["osl"], c["requests"] / admitted)
    full = np.abs(c["requests"] / admitted - c["osl"])
    still_mixing = c["requests"] / admitted > c["osl"]
    tail = np.maximum(c["longest"] - c["osl"], 0.0)
    # Prompts come whole: an iteration has this many, or one more.
    whole = np.floor(admitted)
    chances = ((whole, 1 - (admitted - whole)), (whole + 1, admitted - whole))

    def run(stream: Array, prompt: Array, tokens: Array, attended: Array) -> Array:
        """Seconds of all iterations: filling, full, draining, and the longest answer's tail."""
        draining = _mean_longest(stream, 0 * prompt, tokens, attended)
        total = filling * draining + tail * stream
        for count, chance in chances:
            mixed = np.where(still_mixing, count * prompt, 0.0)
            longest = np.maximum(np.maximum(stream, mixed + tokens), attended)
            total = total + chance * (
                filling * _mean_longest(stream, count * prompt, tokens, attended) + full * longest
            )
        return total

    nothing = np.zeros_like(stream)
    alone = [
        run(stream, nothing, nothing, nothing),
        run(nothing, prompt, tokens, nothing),
        run(nothing, nothing, nothing, attended),
    ]
    answered = c["requests"] * c["osl"]
    by_stream, by_gpu, by_host = (
        np.divide(answered, t, out=np.full_like(t, np.inf), where=(t > 0) & np.isfinite(t)) for t in alone
    )
    memory_bound = room < c["requests"]
    limits = np.stack(
        [
            np.where(memory_bound, by_stream, np.inf),
            np.where(memory_bound, np.inf, by_stream),
            by_gpu,
            by_host,
        ],
        axis=-1,
    )
    limits = np.where(room[..., None] > 0, limits, np.array([0.0, np.inf, np.inf, np.inf]))
    throughput = np.where(room > 0, answered / run(stream, prompt, tokens, attended), 0.0)
    return Bound(throughput, limits, limits.argmin(axis=-1), np.where(room > 0, peak, 0.0))


def _mean_longest(stream: Array, prompts: Array, tokens: Array, attended: Array) -> Array:
    """Mean over a load ``x`` from 0 to 1 of ``max(stream, prompts + tokens x, attended x)``, in closed form.

    The greatest of two straight lines is convex, so the mean is the sum of pieces between their crossings.
    """
    cuts = np.stack(
        [
            _crossing(stream - prompts, tokens),
            _crossing(stream, attended),
            _crossing(prompts, attended - tokens),
        ],
        axis=-1,
    )
    edges = np.sort(np.concatenate([np.zeros_like(cuts[..., :1]), cuts, np.ones_like(cuts[..., :1])], axis=-1), axis=-1)
    middles = (edges[..., 1:] + edges[..., :-1]) / 2
    longest = np.maximum(
        stream[..., None], np.maximum(prompts[..., None] + tokens[..., None] * middles, attended[..., None] * middles)
    )
    return np.asarray((longest * np.diff(edges, axis=-1)).sum(axis=-1))


def _crossing(rise: Array, slope: Array) -> Array:
    """Where ``slope x`` reaches ``rise``, within 0 and 1."""
    met = np.divide(rise, slope, out=np.zeros(np.broadcast_shapes(rise.shape, slope.shape)), where=slope != 0)
    return np.clip(met, 0.0, 1.0)


def case_of(
    model: Architecture,
    node: Node,
    *,
    isl: ArrayLike,
    osl: ArrayLike,
    requests: ArrayLike,
    host_memory: ArrayLike | None = None,
    resident: ArrayLike = 0.0,
    page: ArrayLike = 16,
) -> Case:
    """A hybrid run of a model on one device of a node and its host, in the formats of the model's checkpoint.

    Args:
        isl, osl: mean tokens of a prompt and of an answer. requests: how many are served.
        host_memory: bytes; None for the node's.
        resident: share of the streamed weights that GPU memory keeps instead, 0 to 1 (MoE-Lens keeps none).

    Raises:
        UsageError: the model has no experts; the node has no host, or host memory does not even hold the weights; the
            GPU has no link to it, or multiplies in none of the formats; two layers of weights do not fit on it.
    """
    if not any(isinstance(b.ffn, Experts) for b in model.blocks):
        raise UsageError(f"model {model.name!r} has no experts; hybrid-moe is about mixtures of experts")
    if node.host is None:
        raise UsageError(f"system {node.name!r} has no catalogued host; give a node with a host")
    device = node.device
    if device.host_link is None:
        raise UsageError(f"device {device.name!r} has no host_link in the catalogue; describe one that has")
    weights = weight_bytes(model)
    memory = np.asarray(node.host_memory if host_memory is None else host_memory, float)
    cache = memory * (1 - HOST_RESERVED) - weights
    if np.any(cache <= 0):
        raise UsageError(
            f"{weights / 1e9:.0f} GB of weights of {model.name!r} do not fit in {memory.min() / 1e9:.0f} GB of host "
            f"memory; at least {weights / (1 - HOST_RESERVED) / 1e9:.0f} GB are needed, and more for the cache"
        )
    if BUFFERS * weights / model.layers > device.memory_capacity * (1 - GPU_RESERVED):
        raise UsageError(
            f"{BUFFERS} layers of {model.name!r} take {BUFFERS * weights / model.layers / 1e9:.1f} GB; "
            f"{device.name!r} has {device.memory_capacity / 1e9:.1f} GB"
        )
    isl, osl = np.asarray(isl, float), np.asarray(osl, float)
    kv = BYTES[code(model.checkpoint.kv)]
    grown = sequence_elements(model, isl + osl) - sequence_elements(model, isl)
    pairs = sum(b.count * _attended_width(b.mixer) for b in model.blocks)
    return Case(
        streamed=weights * (1 - np.asarray(resident, float)),
        cache=cache,
        kv=kv * grown / osl,
        flops=2.0 * parameters(model).active,
        prompt_flops=pairs * isl**2,
        rate=float(platform(device, None).rate(np.asarray(code(model.checkpoint.experts)))),
        link=link(device.host_link).bandwidth,
        host_bandwidth=node.host.memory_bandwidth * node.hosts,
        isl=isl,
        osl=osl,
        requests=requests,
        page=page,
    )


def _attended_width(mixer: Mixer | None) -> int:
    """Products of one query with one key and its value; mixers whose work does not grow so count as 0."""
    match mixer:
        case Attention():
            return mixer.heads * (mixer.head_dim + mixer.v_head_dim)
        case LatentAttention():
            return mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim)
        case _:
            return 0


def weight_bytes(model: Architecture) -> float:
    """Bytes of all weights in the formats of the model's checkpoint; embedding, norms and towers in 16 bits."""
    stored = model.checkpoint
    formats = {"attention": stored.attention, "ffn": stored.ffn, "experts": stored.experts, "head": stored.head}
    sizes = (t.size * t.count * BYTES[code(formats.get(t.part, "bf16"))] for t in tensors(model) if t.part != "mtp")
    return float(sum(sizes))


def _explain(model: str, gpu: str, isl: float, osl: float, requests: float, host_memory: float | None) -> Explanation:
    node, architecture = node_of(gpu), read(model)
    given = {"isl": isl, "osl": osl, "requests": requests}
    here = case_of(architecture, node, host_memory=host_memory, **given)
    first, second = ideal(here), estimate(here)
    memory = node.host_memory if host_memory is None else host_memory
    least = weight_bytes(architecture) / (1 - HOST_RESERVED)
    sweep = np.maximum(least * 1.02, memory * 2.0 ** np.arange(-3, 4))
    swept = case_of(architecture, node, host_memory=np.unique(sweep), **given)
    at, reached = ideal(swept), estimate(swept)
    bound, best = str(first.named[()]), float(first.throughput)
    others = np.sort(first.limits)[1]
    advice = {
        "host memory": "more host memory (or a narrower cache) lets more requests share each pass of the weights",
        "link": "every request already shares each pass of the weights; serve more at once, or use a faster link",
        "GPU": "host memory suffices; only a faster GPU, or narrower products, would help",
        "host bandwidth": "the host reads the cache too slowly; use more memory channels, or attend on the GPU",
    }[bound]
    return Explanation(
        figures={
            "ideal_tokens_per_second": best,
            "estimated_tokens_per_second": float(second.throughput),
            "bound_by": bound,
            "requests_in_flight": float(second.in_flight),
            "weights_memory": weight_bytes(architecture),
            "cache_memory": float(np.asarray(here.cache)),
            "weights_pass_time": float(np.asarray(here.streamed) / np.asarray(here.link)),
        },
        tables=(
            Table.of("What each limit alone allows", limit=LIMITS, tokens_per_second=first.limits),
            Table.of(
                "Host memory",
                host_memory=np.unique(sweep),
                ideal_tokens_per_second=at.throughput,
                estimated_tokens_per_second=reached.throughput,
                bound_by=at.named,
            ),
        ),
        says=(
            f"{bound} binds: at most {best:.0f} output tokens/s, {float(second.throughput):.0f} with pages, overlap, "
            f"first and last requests counted.",
            f"{advice[0].upper()}{advice[1:]}; the next limit is {others / best:.2g} times higher.",
        ),
    )


TOPIC = Topic(
    name="hybrid-moe",
    title="How fast is a mixture of experts that lives in host memory?",
    paper="Yuan, Ma, Talati: MoE-Lens: Towards the Hardware Limit of High-Throughput MoE LLM Serving Under Resource "
    "Constraints. arXiv 2504.09345, 2025.",
    options=(
        MODEL,
        GPU,
        Option("isl", float, "Mean tokens of a prompt.", 512.0),
        Option("osl", float, "Mean tokens of an answer.", 128.0),
        Option("requests", float, "Requests that are served together.", 20000.0),
        Option("host_memory", float, "Bytes of host memory; the server's own if not given.", None),
    ),
    explain=_explain,
    example="--model mistralai/Mixtral-8x7B-v0.1 --gpu a100_pcie_40gb --isl 100 --osl 64 --host-memory 265e9",
)
