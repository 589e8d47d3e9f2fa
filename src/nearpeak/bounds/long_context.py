"""What long context costs, in four terms that all go back to the bytes of the KV cache (Fu 2024, arXiv 2405.08944).

Under a memory budget of ``M`` bytes, with ``W`` bytes of weights and ``K`` of one user's cache, on a device of rate
``R``, bandwidth ``B`` and a host link of bandwidth ``L``:

* concurrency: ``(M - W) / K`` users stay in memory;
* prefill: ``(2 P n + A) / R`` seconds, with ``P`` parameters and ``A`` FLOP of attention over ``n`` tokens. Each cached
  element meets the later queries of the ``g`` heads that it serves, so ``A = g (n + 1) K / e``, of ``e`` bytes each;
* decode: ``(W + b K) / B`` seconds a step of ``b`` users;
* context switch: ``2 K / L`` seconds to write one user's cache to the host and read another's.

These are bounds: kernels reach a part of the peaks. The topic sets what the calibrated cost model expects beside them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.bounds import passes
from nearpeak.errors import UsageError
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, numbers, require_positive
from nearpeak.workload import Architecture, parameters

Array = NDArray[np.float64]
Dimension = Literal["layers", "heads", "tokens", "hidden size"]


@dataclass(frozen=True)
class Machine:
    """What the four terms ask of hardware: bytes of memory, FLOP/s, bytes/s of memory and of the link to the host."""

    memory: float
    rate: float
    bandwidth: float
    link: float


@dataclass(frozen=True)
class Mechanism:
    """A way to shrink the cache by a ratio; each field is the power of the ratio that a quantity is divided by.

    Attributes:
        dimension: of the cache ``[layers, heads, tokens, hidden size]`` that it shrinks.
        published: systems that work so.
        stored, read: bytes of cache that lie in memory, and that a decoding token reads.
        matrices, attention: FLOP of a prefill in matrices, and in attention.
    """

    name: str
    dimension: Dimension
    published: str
    stored: int = 1
    read: int = 1
    matrices: int = 0
    attention: int = 0


MECHANISMS: tuple[Mechanism, ...] = (
    Mechanism("prompt stops at the last cached layer", "layers", "YOCO (arXiv 2405.05254)", matrices=1, attention=1),
    Mechanism("layers share a cache", "layers", "CLA (2405.12981), MiniCache (2405.14366)"),
    Mechanism("fewer KV heads", "heads", "GQA (2305.13245), MQA (1911.02150)"),
    Mechanism("heads that see all, and heads with a window", "heads", "DuoAttention (2410.10819)", attention=1),
    Mechanism("tokens left out before prefill", "tokens", "LLMLingua (2310.05736)", matrices=1, attention=2),
    Mechanism("tokens left out after prefill", "tokens", "H2O (2306.14048), SnapKV (2404.14469)"),
    Mechanism("window in prefill and decode", "tokens", "Longformer (2004.05150)", attention=1),
    Mechanism("all tokens kept, few read", "tokens", "Quest (2406.10774)", stored=0),
    Mechanism("fewer bits", "hidden size", "KIVI (2402.02750)"),
    Mechanism("one latent vector for all heads", "hidden size", "MLA (2405.04434)"),
)
"""Kinds of compression in the paper's four dimensions. What each shrinks follows from how it works, not from a run."""


@dataclass(frozen=True)
class Terms:
    """The four terms; arrays that broadcast.

    Attributes:
        users: whose caches fit in memory at once; whole ones are its floor, and below 1 none fits.
        prefill, decode, switch: seconds of a prompt, of a step, of changing between two users.
        kv: bytes of one user's cache.
        kv_in_prefill, kv_in_decode: shares of the two times that go to the cache (the other two are proportional).
    """

    users: Array
    prefill: Array
    decode: Array
    switch: Array
    kv: Array
    kv_in_prefill: Array
    kv_in_decode: Array


def four_terms(
    model: Architecture,
    machine: Machine,
    context: ArrayLike,
    element: ArrayLike = 2.0,
    weight: ArrayLike = 2.0,
    batch: ArrayLike = 1,
    mechanism: Mechanism | None = None,
    ratio: ArrayLike = 1.0,
) -> Terms:
    """Bounds of the four terms.

    Args:
        context: tokens of a user. batch: users in a decode step.
        element, weight: bytes of a cached value and of a parameter.
        mechanism, ratio: how the cache is shrunk, and how many times.

    Raises:
        UsageError: a number is not finite and above 0.
    """
    require_positive(context=context, element=element, weight=weight, batch=batch, ratio=ratio)
    how = mechanism or Mechanism("none", "tokens", "", stored=0, read=0)
    left = 1.0 / np.asarray(ratio, float)
    count, users, tokens = parameters(model), np.asarray(batch, float), np.asarray(context, float)
    held = count.total * np.asarray(weight, float)
    kv = passes.cache_bytes(model, tokens, element) * left**how.stored
    read = passes.cache_read(model, tokens, element) * left**how.read
    matrices = passes.prefill_matrix_flop(model, tokens) * left**how.matrices
    attention = passes.prefill_attention_flop(model, tokens) * left**how.attention
    met = passes.met_parameters(model, users) * np.asarray(weight, float)
    flop = users * (passes.matrix_flop(model) + passes.attention_flop(model, tokens) * left**how.read)
    return Terms(
        users=np.maximum(0.0, (machine.memory - held) / kv),
        prefill=np.maximum(
            (matrices + attention) / machine.rate, count.active * np.asarray(weight) / machine.bandwidth
        ),
        decode=np.maximum((met + users * read) / machine.bandwidth, flop / machine.rate),
        switch=2.0 * kv / machine.link,
        kv=kv,
        kv_in_prefill=attention / (matrices + attention),
        kv_in_decode=users * read / (met + users * read),
    )


def gains(
    model: Architecture,
    machine: Machine,
    context: float,
    ratio: float,
    batch: float = 1,
    element: float = 2.0,
    weight: float = 2.0,
) -> dict[str, tuple[float, ...]]:
    """How many times better each mechanism makes concurrency, prefill, decode and switch; best product first."""
    plain = four_terms(model, machine, context, element, weight, batch)
    found: dict[str, tuple[float, ...]] = {}
    for how in MECHANISMS:
        to = four_terms(model, machine, context, element, weight, batch, how, ratio)
        # Without room for the weights no compression of the cache helps.
        users = float(to.users / plain.users) if plain.users > 0 else 1.0
        times = ((plain.prefill, to.prefill), (plain.decode, to.decode), (plain.switch, to.switch))
        found[how.name] = (users, *(float(before / after) for before, after in times))
    ranked = sorted(found, key=lambda name: -float(np.prod(found[name])))
    return {name: found[name] for name in ranked}


def _explain(
    model: str, gpu: str, devices: int, context: tuple[float, ...], batch: float, kv: str, weights: str, ratio: float
) -> Explanation:
    from nearpeak.case import setup
    from nearpeak.cost import decode, platform_of, prefill
    from nearpeak.formats import code, named
    from nearpeak.hardware import link

    require_positive(context=context, batch=batch, ratio=ratio)
    stored, cached = named(weights), named(kv)
    own = setup(
        model, gpu, devices, isl=np.asarray(context), osl=1.0, attention=code(weights), ffn=code(weights),
        experts=code(weights), kv=code(kv),
    )  # fmt: skip
    device, at = own.node.device, platform_of(own)
    if device.host_link is None:
        raise UsageError(f"{device.title} has no link to a host in the catalogue; context switches need one")
    machine = Machine(
        devices * device.memory_capacity,
        devices * float(at.rate(np.asarray(code(weights)))),
        devices * device.memory_bandwidth,
        devices * link(device.host_link).bandwidth,
    )
    tokens = np.asarray(context)
    bound = four_terms(own.model, machine, tokens, cached.bytes, stored.bytes, batch)
    kernels = prefill(at, own, own.decode, np.ones(()), tokens).total
    step = decode(at, own, own.decode, np.asarray(batch), tokens).total
    longest = float(tokens.max())
    last = int(tokens.argmax())
    ranked = gains(own.model, machine, longest, ratio, batch, cached.bytes, stored.bytes)
    by_name = {how.name: how for how in MECHANISMS}
    says: tuple[str, ...] = (
        f"From {tokens.min():g} to {longest:g} tokens: {np.floor(bound.users.max()):g} to "
        f"{np.floor(bound.users.min()):g} users in memory.",
        "Concurrency and switching follow the bytes of the cache one to one; decoding by the cache's share of what a "
        "step reads; prefill by what attention computes, which only mechanisms that skip work before the cache shrink.",
    )
    if float(bound.users[last]) < 1:
        says = (*says, f"No user of {longest:g} tokens fits beside the weights: more devices, or fewer bits.")
    return Explanation(
        {
            "weights_memory": parameters(own.model).total * stored.bytes,
            "token_kv_memory": float((bound.kv / tokens)[last]),
            "kv_memory": float(bound.kv[last]),
            "users": float(np.floor(bound.users[last])),
        },
        (
            Table.of(
                "Bounds by context, and what the calibrated model expects of kernels",
                context=tokens,
                kv_memory=bound.kv,
                users=np.floor(bound.users),
                prefill_time=bound.prefill,
                prefill_predicted_time=kernels,
                kv_in_prefill_share=bound.kv_in_prefill,
                decode_time=bound.decode,
                decode_predicted_time=step,
                kv_in_decode_share=bound.kv_in_decode,
                switch_time=bound.switch,
            ),
            Table(
                f"A cache {ratio:g} times smaller at {longest:g} tokens: how many times better, best first",
                tuple(
                    {
                        "how": name,
                        "dimension": by_name[name].dimension,
                        "concurrency": gain[0],
                        "prefill": gain[1],
                        "decode": gain[2],
                        "switch": gain[3],
                        "published": by_name[name].published,
                    }
                    for name, gain in ranked.items()
                ),
            ),
        ),
        says,
    )


TOPIC = Topic(
    "long-context",
    "What does long context cost, and which compression of the KV cache buys what back?",
    "Fu, Challenges in Deploying Long-Context Transformers: A Theoretical Peak Performance Analysis, 2024 "
    "(arXiv 2405.08944)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("context", numbers, "Tokens of a user's context, several between commas.", (4000.0, 50000.0)),
        Option("batch", float, "Users in a decode step.", 1.0),
        Option("kv", str, "Number format of the cache.", "bf16"),
        Option("weights", str, "Number format of the weights.", "bf16"),
        Option("ratio", float, "How many times smaller the compressions make the cache.", 2.0),
    ),
    _explain,
    "--model Qwen/Qwen3-32B --gpu h200 --context 4000,50000,128000",
)
