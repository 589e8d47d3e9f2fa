"""Attention and experts on pools of devices of their own, each as large as it should be, against a monolith.

A monolith gives every device its share of attention and of experts, so that both grow together. Zhang et al. ("Janus:
Disaggregating Attention and Experts for Scalable MoE Inference", 2025, arXiv 2512.13525) deal ``a`` attention replicas
and ``e`` expert devices independently; tokens travel there and back in every layer (``expert_transfer``), and memory
that holds no cache holds copies of experts, among which the least loaded is chosen (``expert_replicas``).

With a batch in ``m`` micro-batches, one is at attention while another is with the experts and others travel (Zhu et
al., "MegaScale-Infer", 2025, arXiv 2504.02263). All stages serve in order, so that a micro-batch comes round in

    max(A + E + 2 T,  m max(A, E, T))

seconds: its own way, or as long as the busiest stage needs for all of them. ``A``, ``E`` and ``T`` are attention,
experts and one way between them of a micro-batch in all layers. That is the time between two tokens of a request
(TPOT).

``splits`` prices every such deployment up to a number of devices, ``monoliths`` every layout of the undivided model,
both with all batches; decoding alone, as both leave prefill to others. A monolith sends its tokens as the engine does
(``cost.decode``) or as a split would, whichever is quicker, and may overlap two micro-batches as well.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import decode, ledger
from nearpeak.errors import UsageError
from nearpeak.fleet import expert_replicas as replicas
from nearpeak.fleet.expert_costs import DRAWS, Parts, experts_of
from nearpeak.fleet.expert_transfer import WAYS, transfer
from nearpeak.formats import code
from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload import read

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MICRO_BATCHES = np.arange(1, 5)


@dataclass(frozen=True, eq=False)
class Deployments:
    """Many ways to decode one model; arrays of one shape.

    Attributes:
        tp, pp, attention: devices of an attention replica, pipeline stages, replicas in each stage.
        experts: devices of a stage that hold experts; in a monolith the same as those of attention.
        devices: in all. micro: micro-batches in each stage. batch: requests of an attention replica, all micro-batches.
        slots: experts that a device of ``experts`` can hold of each layer, copies included.
        attention_time, expert_time, transfer_time: seconds of one micro-batch in all layers, one way of the transfer.
        way: index in ``expert_transfer.WAYS``.
        tpot: seconds. rate: output tokens/s of one device; 0 where memory does not hold it.
    """

    tp: Array
    pp: Array
    attention: Array
    experts: Array
    devices: Array
    micro: Array
    batch: Array
    slots: Array
    attention_time: Array
    expert_time: Array
    transfer_time: Array
    way: Array
    tpot: Array
    rate: Array

    @classmethod
    def of(cls, **columns: ArrayLike) -> "Deployments":
        """From columns that broadcast."""
        wide = np.broadcast_arrays(*(np.asarray(c, float) for c in columns.values()))
        return cls(**{name: a.ravel() for name, a in zip(columns, wide, strict=True)})

    def best(self, tpot: float) -> dict[str, float] | None:
        """The one with the most tokens a device among those within ``tpot`` seconds; None if none is."""
        within = np.where(self.tpot <= tpot, self.rate, 0.0)
        i = int(within.argmax())
        return {name: float(a[i]) for name, a in vars(self).items()} if within[i] > 0 else None


def round_time(attention: ArrayLike, experts: ArrayLike, way: ArrayLike, micro: ArrayLike) -> Array:
    """Seconds until a micro-batch comes round: attention, a way, experts, a way, each serving one after another."""
    a, e, t = (np.asarray(x, float) for x in (attention, experts, way))
    busiest = np.maximum(np.maximum(a, e), t)
    return np.asarray(np.maximum(a + e + 2 * t, np.asarray(micro) * busiest))


def splits(setup: Setup, most: int, copies: bool = True, seed: int = 0) -> Deployments:
    """Every split of at most ``most`` devices: tp, stages, attention replicas, expert devices, micro-batches, batch.

    Args:
        setup: model, node, engine, lengths and formats. copies: experts lie on several devices where memory allows.
    """
    at, ffn = Parts.of(setup), experts_of(setup.model)
    rows = [
        (tp, pp, a, e)
        for tp, pp in product(_powers(setup.node.count), _powers(setup.model.layers))
        for a in range(1, most // (tp * pp) + 1)
        for e in range(1, min(most // pp - tp * a, ffn.count) + 1)
    ]
    if not rows:
        raise UsageError(f"{most} devices cannot be split in two pools; give at least 2")
    tp, pp, a, e = np.array(rows, float).T[:, :, None, None]
    m, batch = MICRO_BATCHES[:, None], _batches()
    each = np.maximum(batch / m, 1.0)
    held, idle = ledger(at.bare, Pool(tp=tp, pp=pp, batch=batch * pp)), ledger(setup, Pool(batch=0))
    slots = at.slots(idle.capacity - idle.reserved - idle.activations, pp)
    fits = held.fits & (np.ceil(ffn.count / e) <= slots) & (batch >= m)
    tokens = each * a
    attention = at.attention(tp, pp, each)
    experts = at.experts(pp, tokens, e)
    if copies:
        experts = experts * at.gain(e, slots, tokens, seed)
    moved = transfer(at.platform, setup.node, tokens, at.width, ffn.topk, tp * a, e)
    return _deployed(
        fits, tp=tp, pp=pp, attention=a, experts=e, devices=(tp * a + e) * pp, micro=m, batch=batch, slots=slots,
        attention_time=attention, expert_time=experts, transfer_time=moved.seconds * at.layers(pp), way=moved.way,
    )  # fmt: skip


def monoliths(setup: Setup, most: int, copies: bool = False, seed: int = 0) -> Deployments:
    """Every layout of the undivided model on at most ``most`` devices, tp and experts cut or dealt, any dp, any batch.

    Args:
        copies: memory beside the cache also holds copies of experts, as in a split; engines hold none by default.
    """
    at, ffn = Parts.of(setup), experts_of(setup.model)
    rows = [
        (tp, pp, dp, cut)
        for tp, pp in product(_powers(setup.node.count), _powers(setup.model.layers))
        for dp in range(1, most // (tp * pp) + 1)
        for cut in (1, tp * dp)
        if tp * dp <= ffn.count and (cut == 1 or (cut <= setup.node.count and ffn.inter % cut == 0))
    ]
    tp, pp, dp, cut = np.array(rows, float).T[:, :, None, None]
    group = tp * dp
    m, batch = MICRO_BATCHES[:2, None], _batches()
    each = np.maximum(batch / m, 1.0)
    pool = Pool(tp=tp, pp=pp, dp=dp, moe_tp=cut, moe_ep=group / cut, batch=batch * pp)
    held = ledger(setup, pool)
    fits = held.fits & (batch >= m)
    tokens = each * dp
    attention = at.attention(tp, pp, each)
    # Kernels of both take the same devices; the engine's own way from device to device is priced with its step.
    whole = decode(at.platform, setup, pool, each * pp, at.context).total * at.host.graph + at.overhead(each)
    slots = at.slots(held.capacity - held.used, pp) + np.ceil(ffn.count / group)
    experts = at.experts(pp, tokens, group)
    if copies:
        experts = experts * at.gain(group, slots, tokens, seed)
    moved = transfer(at.platform, setup.node, tokens, at.width, ffn.topk, group, group, same=True)
    same = {"tp": tp, "pp": pp, "attention": dp, "experts": group, "devices": group * pp, "micro": m, "batch": batch}
    same |= {"slots": slots, "way": moved.way, "expert_time": 0.0}
    ours = _deployed(
        fits & (cut == 1), **same, attention_time=attention + experts, transfer_time=moved.seconds * at.layers(pp)
    )
    own = _deployed(fits & (m == 1), **same, attention_time=whole, transfer_time=0.0)
    return Deployments(**{name: np.concatenate([a, getattr(own, name)]) for name, a in vars(ours).items()})


def _deployed(fits: Mask, **columns: ArrayLike) -> Deployments:
    """With time per token and rate that follow from the other columns."""
    c = {name: np.asarray(column, float) for name, column in columns.items()}
    tpot = round_time(c["attention_time"], c["expert_time"], c["transfer_time"], c["micro"])
    made = c["batch"] * c["attention"] * c["pp"] / tpot / c["devices"]
    return Deployments.of(**c, tpot=tpot, rate=np.where(fits, made, 0.0))


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= min(most, 8)]


def _batches() -> Array:
    return np.unique(np.rint(np.concatenate([np.arange(1.0, 17.0), np.geomspace(16, 4096, 48)])))


GOALS = np.array([0.025, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15])
"""Seconds of TPOT that the table of goals shows."""
CLAIM = 3.9


def _explain(
    model: str, gpu: str, most: int, isl: float, osl: float, tpot: float, engine: str, seed: int
) -> Explanation:
    require_positive(most=most, isl=isl, osl=osl, tpot=tpot)
    architecture = read(model)
    stored: dict[str, Any] = {
        n: code(getattr(architecture.checkpoint, n)) for n in ("attention", "ffn", "experts", "kv")
    }
    setup = Setup(architecture, node_of(gpu), engine, isl, osl, Pool(), **stored)
    found = {
        "split": splits(setup, most, seed=seed),
        "split_without_copies": splits(setup, most, copies=False),
        "monolith": monoliths(setup, most),
        "monolith_with_copies": monoliths(setup, most, copies=True, seed=seed),
    }
    best = {name: side.best(tpot) for name, side in found.items()}
    mine, other = best["split"], best["monolith"]
    if mine is None:
        raise UsageError(
            f"no split of {architecture.name} on at most {most} {gpu} decodes a token in {tpot:g} s; give more devices "
            "or more time"
        )
    rows = []
    for goal in np.unique(np.append(GOALS, tpot)).tolist():
        rates = {name: plan["rate"] if (plan := side.best(goal)) else 0.0 for name, side in found.items()}
        ratio = rates["split"] / rates["monolith"] if rates["monolith"] else None
        rows.append({"tpot": goal} | {f"{n}_tokens_per_second": r for n, r in rates.items()} | {"split_ratio": ratio})
    chosen = _choices(setup, mine, seed)
    says = [
        f"{mine['attention']:.0f} attention replicas of tp {mine['tp']:.0f} and {mine['experts']:.0f} expert devices"
        + (f" in each of {mine['pp']:.0f} stages" if mine["pp"] > 1 else "")
        + f", {mine['micro']:.0f} micro-batches; tokens travel {WAYS[int(mine['way'])]}.",
        "No monolith on as many devices is as fast."
        if other is None
        else f"A device makes {mine['rate'] / other['rate']:.3g} times the tokens of the best monolith (tp "
        f"{other['tp']:.0f}, pp {other['pp']:.0f}, dp {other['attention']:.0f}); the paper reports up to {CLAIM}.",
    ]
    if best["monolith_with_copies"] is not None:
        says.append(
            f"Of a monolith that holds copies of experts as well it makes "
            f"{mine['rate'] / best['monolith_with_copies']['rate']:.3g} times the tokens."
        )
    return Explanation(
        figures={
            "tokens_per_second_per_device": mine["rate"],
            "tpot": mine["tpot"],
            "devices": int(mine["devices"]),
            "attention_devices": int(mine["attention"] * mine["tp"] * mine["pp"]),
            "expert_devices": int(mine["experts"] * mine["pp"]),
            "micro_batches": int(mine["micro"]),
            "requests": int(mine["batch"] * mine["attention"] * mine["pp"]),
            "attention_time": mine["attention_time"],
            "expert_time": mine["expert_time"],
            "transfer_time": mine["transfer_time"],
            "expert_slots": int(mine["slots"]),
        },
        tables=(
            Table("Output tokens/s of a device, by time per output token", tuple(rows)),
            Table("Distinct experts that the busiest device is asked for", tuple(chosen)),
        ),
        says=tuple(says),
    )


def _choices(setup: Setup, plan: dict[str, float], seed: int) -> list[dict[str, Any]]:
    """Means over batches of what choices of copies come to on the devices of a split."""
    ffn, devices = experts_of(setup.model), int(plan["experts"])
    tokens = max(1, round(plan["batch"] * plan["attention"] / plan["micro"]))
    popular = replicas.popularity(ffn.count, tokens)[np.random.default_rng(seed).permutation(ffn.count)]
    rows = replicas.route(popular, tokens, ffn.topk, DRAWS, seed)
    past = replicas.route(popular, tokens, ffn.topk, DRAWS, seed + 1).mean(axis=0)
    hosts = replicas.place(past, devices, int(plan["slots"]))
    ways = {
        "no copies": replicas.greedy(rows, replicas.in_blocks(ffn.count, devices)),
        "copies, at random": replicas.at_random(rows, hosts, seed),
        "copies, greedy": replicas.greedy(rows, hosts),
        "copies, optimum": replicas.optimum(rows, hosts),
    }
    return [
        {
            "choice": name,
            "activated": float(replicas.activated(choice, devices).max(axis=1).mean()),
            "rows": float(replicas.carried(choice, rows, devices).max(axis=1).mean()),
        }
        for name, choice in ways.items()
    ]


TOPIC = Topic(
    "expert-pools",
    "How many devices for attention and how many for experts, and what does it gain over a monolith?",
    "Zhang et al., Janus: Disaggregating Attention and Experts for Scalable MoE Inference, 2025 (arXiv 2512.13525)",
    (
        MODEL,
        GPU,
        Option("most", int, "Devices at most, of both pools or of a monolith.", 32),
        Option("isl", float, "Tokens of a prompt.", 2000.0),
        Option("osl", float, "Tokens of an answer.", 500.0),
        Option("tpot", float, "Seconds between two tokens of a request, at most.", 0.04),
        Option("engine", str, "Serving engine whose kernels and host run.", "vllm"),
        Option("seed", int, "Of the routing that is drawn.", 0),
    ),
    _explain,
    "--model deepseek-ai/DeepSeek-V3 --gpu h200 --most 32 --tpot 0.04",
)
