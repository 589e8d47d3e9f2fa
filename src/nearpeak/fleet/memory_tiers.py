"""Where an offloaded fine-tune keeps its tensors: local DRAM, or cards of CXL memory beside it.

Long contexts fill local DRAM with activations; CXL cards add room, at a higher latency and behind a link each. Liaw and
Chen, "Analysis and Optimized CXL-Attached Memory Allocation for Long-Context LLM Fine-Tuning", arXiv 2507.03305 (2025):
what the CPU's optimizer works on belongs in DRAM; what the GPU copies may lie on cards, dealt out over all of them.
Pages interleaved over everything let the optimizer wait for the slowest card.

Three placements of groups of tensors: ``interleaved`` pages, the paper's ``aware`` one, and the best one there is, an
integer program (``exact``). ``offload_tiers`` says how long a step takes with each.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.fleet.offload_tiers import (
    CONTENTION,
    KINDS,
    OPTIMIZER,
    PHASES,
    Array,
    Offload,
    Tier,
    card,
    dram,
    fits,
    offload,
    phase_seconds,
)
from nearpeak.hardware import link, node_of
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, numbers
from nearpeak.workload import TrainingJob, read
from nearpeak.workload.training import recompute_code

WORTH = 0.005
"""Share of a step that leaving the rule must save: smaller gains are within what the curves are known to."""


def interleaved(of: Offload, tiers: Sequence[Tier]) -> Array:
    """Pages dealt out one to each tier in turn, as ``numactl --interleave`` does; a full tier is passed over.

    Groups are allocated one after another, ``[groups, tiers]``.

    Raises:
        UsageError: all tiers together are too small.
    """
    room = np.array([tier.capacity for tier in tiers])
    _enough(of, tiers)
    shares = np.zeros((of.size.size, len(tiers)))
    for g, size in enumerate(of.size):
        left = size
        while left > 1e-6 * size:
            open_ = room > 1e-9 * size
            each = min(left / open_.sum(), room[open_].min())
            shares[g, open_] += each / size
            room = room - each * open_
            left -= each * open_.sum()
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _enough(of: Offload, tiers: Sequence[Tier]) -> None:
    total = sum(tier.capacity for tier in tiers)
    if of.size.sum() > total:
        raise UsageError(
            f"{of.size.sum() / 1e9:.4g} GB of tensors do not fit {total / 1e9:.4g} GB of memory; add a card, or take "
            "fewer tokens"
        )


def choices(tiers: Sequence[Tier]) -> Array:
    """Where a group may lie, ``[choices, tiers]``: in the first tier, dealt out over all others, or in one of them."""
    one, cards = np.eye(len(tiers)), len(tiers) - 1
    return one if cards < 2 else np.insert(one, 1, np.append(0.0, np.full(cards, 1 / cards)), axis=0)


def aware(of: Offload, tiers: Sequence[Tier]) -> Array:
    """A placement that keeps what the CPU works on in the first tier, ``[groups, tiers]``.

    Groups are placed one after another, those first that the optimizer moves most for each byte kept: what it moves
    more than once goes to the first tier while there is room, all else where the step gets least longer. The rule is
    left only where the move of a group, or an exchange of two, makes the step shorter by ``WORTH``: where the CPU's own
    memory is slow, several cards may add to its bandwidth.

    Raises:
        UsageError: the groups do not fit, or not whole.
    """
    _enough(of, tiers)
    options, placed = choices(tiers), np.zeros((of.size.size, len(tiers)))
    worked = of.traffic[OPTIMIZER] / of.size
    for g in np.argsort(-worked, kind="stable"):
        tried = np.repeat(placed[None], len(options), 0)
        tried[:, g] = options
        seconds = _seconds(of, tiers, tried)
        if not np.isfinite(seconds).any():
            raise UsageError(f"group {of.names[g]} fits nowhere whole; cut the layers into more parts")
        placed = tried[0 if np.isfinite(seconds[0]) and worked[g] > 1 else int(np.argmin(seconds))]
    while True:
        around = _neighbours(placed, options)
        seconds = _seconds(of, tiers, around)
        best = int(np.argmin(seconds))
        if seconds[best] > (1 - WORTH) * _seconds(of, tiers, placed):
            return placed
        placed = around[best]


def _seconds(of: Offload, tiers: Sequence[Tier], shares: Array) -> Array:
    """Seconds of a step, infinite where the groups do not fit."""
    return np.where(fits(of, tiers, shares), phase_seconds(of, tiers, shares).sum(-1), np.inf)


def _neighbours(placed: Array, options: Array) -> Array:
    """Placements one move, or one exchange of two groups, away, ``[neighbours, groups, tiers]``."""
    count = len(placed)
    moves = np.repeat(placed[None], count * len(options), 0)
    moves[np.arange(len(moves)), np.repeat(np.arange(count), len(options))] = np.tile(options, (count, 1))
    first, second = np.triu_indices(count, 1)
    swaps = np.repeat(placed[None], first.size, 0)
    rows = np.arange(first.size)
    swaps[rows, first], swaps[rows, second] = placed[second], placed[first]
    return np.concatenate([moves, swaps])


class _Program:
    """A mixed integer program that is written down row by row; all variables lie between 0 and ``most``."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.most: list[float] = []
        self.whole: list[int] = []
        self.rows: list[dict[int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def variable(self, cost: float = 0.0, most: float = 1.0, whole: bool = True) -> int:
        self.cost.append(cost)
        self.most.append(most)
        self.whole.append(int(whole))
        return len(self.cost) - 1

    def require(self, row: dict[int, float], low: float = -np.inf, high: float = np.inf) -> None:
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)

    def solve(self, gap: float) -> Array | None:
        """The best variables, None where there are none."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        at = [(i, j, value) for i, row in enumerate(self.rows) for j, value in row.items()]
        i, j, value = (np.array(column) for column in zip(*at, strict=True))
        matrix = coo_array((value, (i.astype(int), j.astype(int))), (len(self.rows), len(self.cost))).tocsr()
        found = milp(
            np.array(self.cost), integrality=np.array(self.whole), bounds=Bounds(0, np.array(self.most)),
            constraints=LinearConstraint(matrix, np.array(self.low), np.array(self.high)),
            options={"mip_rel_gap": gap},
        )  # fmt: skip
        return None if found.x is None else np.asarray(found.x)


def exact(of: Offload, tiers: Sequence[Tier], gap: float = 1e-6) -> Array:
    """The placement with the shortest step, ``[groups, tiers]``: a mixed integer program, by HiGHS.

    A group lies in one of ``choices``. A tier gives what its curve says at ``n`` streams, where exactly one ``n`` of
    each tier and phase is chosen, no less than the kinds of tensors that the GPUs copy from or to it.

    Args:
        gap: relative distance from the optimum at which the search may stop.

    Raises:
        UsageError: the groups do not fit, or not whole.
    """
    _enough(of, tiers)
    options, program = choices(tiers), _Program()
    groups = range(of.size.size)
    x = [[program.variable() for _ in options] for _ in groups]
    for row in x:
        program.require(dict.fromkeys(row, 1.0), 1.0, 1.0)
    for t, tier in enumerate(tiers):
        held = {x[g][m]: of.size[g] * option[t] / tier.capacity for g in groups for m, option in enumerate(options)}
        program.require(held, high=1.0)
    kinds = len(KINDS)
    for phase, traffic in enumerate(of.traffic):
        for part in range(of.parts):
            seconds = program.variable(1.0, np.inf, whole=False)
            program.require({seconds: 1.0}, low=float(of.floor[phase]) / of.parts)
            waits: dict[int, float] = {}
            own = [g for g in range(part * kinds, (part + 1) * kinds) if traffic[g] > 0]
            for t, tier in enumerate(tiers):
                moved = {x[g][m]: traffic[g] * o[t] for g in own for m, o in enumerate(options) if o[t] > 0}
                if phase == OPTIMIZER:
                    rate = float(tier.delivered(1))
                    program.require({seconds: 1.0} | {v: -b / rate for v, b in moved.items()}, low=0.0)
                    for v, b in moved.items():
                        waits[v] = waits.get(v, 0.0) - b * tier.latency / of.in_flight
                    continue
                streams = [program.variable() for _ in range(len(own) + 1)]
                program.require(dict.fromkeys(streams, 1.0), 1.0, 1.0)
                program.require({v: float(n) for n, v in enumerate(streams)} | dict.fromkeys(moved, -1.0), low=0.0)
                for n, count in enumerate(streams[1:], 1):
                    rate = float(tier.delivered(n * of.gpus))
                    most = sum(moved.values()) / rate  # frees the row where the count is another
                    held_back = {seconds: 1.0, count: -most} | {v: -b / rate for v, b in moved.items()}
                    program.require(held_back, low=-most)
            if waits:
                program.require({seconds: 1.0} | waits, low=0.0)
    found = program.solve(gap)
    if found is None:
        raise UsageError("the groups fit nowhere whole; cut the layers into more parts")
    return options[[int(np.argmax(found[row])) for row in x]]


def _explain(
    model: str,
    gpu: str,
    devices: int,
    sequence: int,
    micro_batch: int,
    dram_memory: float,
    cards: int,
    card_memory: float,
    card_link: str,
    contention: tuple[float, ...],
    parts: int,
) -> Explanation:
    node = node_of(gpu)
    if not (1 <= devices <= node.count and cards >= 1):
        raise UsageError(
            f"devices must be 1 to {node.count}, those of {node.title}, not {devices}; cards 1 or more, not {cards}"
        )
    job = TrainingJob(
        read(model), sequence, devices * micro_batch, micro_batch, dp=devices, zero=2, recompute=recompute_code("full")
    )
    of = offload(job, node, parts)
    local = dram(node, dram_memory)
    tiers = [local, *(card(f"card_{i + 1}", card_memory, link(card_link), contention) for i in range(cards))]
    one = [replace(local, capacity=float(of.size.sum()))]
    everything = phase_seconds(of, one, np.ones((of.size.size, 1)))
    chosen = {"aware": aware(of, tiers), "exact": exact(of, tiers), "interleaved": interleaved(of, tiers)}
    times = {"all_dram": everything} | {name: phase_seconds(of, tiers, shares) for name, shares in chosen.items()}
    base = float(everything.sum())
    total = {name: float(seconds.sum()) for name, seconds in times.items()}
    rows = tuple(
        {"placement": name, "step_time": total[name], "over_all_dram_ratio": total[name] / base}
        | {f"{phase}_time": float(value) for phase, value in zip(PHASES, seconds, strict=True)}
        for name, seconds in times.items()
    )
    lies = tuple(
        {"group": name, "memory": float(of.size[g])}
        | {f"{tier.name}_share": float(chosen["aware"][g, t]) for t, tier in enumerate(tiers)}
        for g, name in enumerate(of.names)
    )
    fitting = "fit" if of.size.sum() <= dram_memory else "do not fit"
    return Explanation(
        {
            "tensors_memory": float(of.size.sum()),
            "aware_step_time": total["aware"],
            "aware_over_all_dram_ratio": total["aware"] / base,
            "aware_over_exact_ratio": total["aware"] / total["exact"],
            "interleaved_over_aware_ratio": total["interleaved"] / total["aware"],
        },
        (Table("A step by placement", rows), Table("The aware placement", lies)),
        (
            f"{of.size.sum() / 1e9:.4g} GB of tensors {fitting} {dram_memory / 1e9:.4g} GB of local DRAM. Interleaved "
            f"pages make a step {total['interleaved'] / total['aware']:.3g} times as long as aware placement; that is "
            f"{total['aware'] / total['exact'] - 1:.1%} from the best.",
        ),
    )


TOPIC = Topic(
    "memory-tiers",
    "Which tensors of an offloaded fine-tune belong in DRAM, and which on CXL cards?",
    "Liaw and Chen, Analysis and Optimized CXL-Attached Memory Allocation for Long-Context LLM Fine-Tuning, 2025 "
    "(arXiv 2507.03305)",
    (
        MODEL,
        GPU,
        Option("devices", int, "GPUs that fine-tune by data parallelism and share the host.", 1),
        Option("sequence", int, "Tokens of a sequence.", 32768),
        Option("micro_batch", int, "Sequences of a GPU and step.", 1),
        Option("dram_memory", float, "Bytes of local DRAM.", 128e9),
        Option("cards", int, "CXL cards.", 2),
        Option("card_memory", float, "Bytes of a card.", 256e9),
        Option("card_link", str, "Link of a card, from the catalogue.", "cxl2_x16"),
        Option("contention", numbers, "Share of a card's bandwidth that 1, 2, ... copies get together.", CONTENTION),
        Option("parts", int, "Parts of the layers; each has a group of each kind of tensor.", 2),
    ),
    _explain,
    "--model XiaomiMiMo/MiMo-7B-Base --gpu h100",
)
