"""Serving on volunteers: unlike GPUs over slow links, which come together to hold a model and may leave at any time.

Tong et al., "Parallax: Efficient LLM Inference Service over Decentralized Environment", 2025 (arXiv 2509.26182), plan
in two phases: which layers each node holds (``layer_allocation``), and for each request the shortest way through nodes
of any replica by their live load (``decentralized_loop``). What a layer takes on a node comes from ``nearpeak.cost``.
The baseline fills nodes with layers one after another and keeps requests in their replicas, each in the one with the
least load.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import decode, platform_of, prefill
from nearpeak.cost.memory import CONTEXT, RESERVED, kv_bytes, weight_bytes
from nearpeak.cost.step import ACTIVATION
from nearpeak.errors import UsageError
from nearpeak.fleet.decentralized_loop import serve
from nearpeak.fleet.layer_allocation import Allocation, Nodes, allocate, fill
from nearpeak.formats import code
from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.topic import MODEL, Explanation, Option, Table, Topic, names, require_positive
from nearpeak.workload import Architecture, parameters, read

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
WEIGHTS = 0.65
"""Share of a node's usable memory that layers may fill; the rest is for caches (Parallax's default)."""
BATCHES = (1.0, 17.0)
"""Requests of the two decode steps between which a node's seconds of a layer are taken to be linear."""
PROMPT = 500.0
"""Tokens of the prompt by which nodes are priced."""
GPUS = ("rtx_3090", "rtx_4070", "rtx_4090", "rtx_5090", "rtx_a4000", "rtx_a6000")


@dataclass(frozen=True, eq=False)
class Volunteers:
    """Nodes that hold parts of one model.

    Attributes:
        gpu: name of each. fixed, each, prompt: seconds of a layer on each: of a batch, of a decoded token, of a
            prompt's token, ``[nodes]``. usable: bytes of each for layers and caches.
        link, pace: seconds and bytes/s from node to node, ``[nodes, nodes]``. region: ``[nodes]``.
        layers: of the model. layer: bytes of one. cache: bytes of a token's cache in one. width: bytes of a token
            between two layers.
    """

    gpu: tuple[str, ...]
    fixed: Array
    each: Array
    prompt: Array
    usable: Array
    link: Array
    pace: Array
    region: Ints
    layers: int
    layer: float
    cache: float
    width: float

    @property
    def nodes(self) -> Nodes:
        """What the allocation knows of them."""
        capacity = np.floor(WEIGHTS * self.usable / self.layer).clip(0, self.layers).astype(np.int64)
        return Nodes(capacity, self.fixed + self.each, self.link, self.region, self.layers)

    def room(self, held: Allocation) -> Array:
        """Tokens times layers that caches beside the allocated layers hold, ``[nodes]``."""
        return np.asarray(np.maximum(self.usable - (held.last - held.first) * self.layer, 0.0) / self.cache)


def volunteers(model: Architecture, gpus: Sequence[str], regions: int = 3, seed: int = 0) -> Volunteers:
    """One node for each GPU, at random places in regions, 10 to 100 ms and 100 Mb/s to 1 Gb/s from one another.

    Latency grows with the distance from 10 ms; a link has the bandwidth of the slower of its nodes.

    Raises:
        UnknownName: of a GPU. UsageError: no region.
    """
    require_positive(regions=regions)
    random = np.random.default_rng(seed)
    region = random.integers(0, regions, len(gpus))
    place = random.random((regions, 2))[region] + 0.05 * random.standard_normal((len(gpus), 2))
    apart = np.linalg.norm(place[:, None] - place, axis=-1)
    line = 12.5e6 * 10 ** random.random(len(gpus))
    figures = np.array([_figures(model, gpu) for gpu in gpus]).T
    link = 0.01 + 0.09 * apart / max(float(apart.max()), 1e-9)
    np.fill_diagonal(link, 0.0)
    one = _setup(model, gpus[0])
    parts, tokens = parameters(model), np.asarray(1000.0)
    ends = (parts.embedding + parts.head) * ACTIVATION
    layer = float((weight_bytes(one, Pool()) - ends) / model.layers)
    fixed, each, prompt, memory = figures
    return Volunteers(
        tuple(gpus), fixed, each, prompt, np.maximum(memory - ends, 0.0), link, np.minimum(line[:, None], line), region,
        model.layers, layer, float(kv_bytes(one, Pool(), tokens) / tokens) / model.layers, model.hidden * ACTIVATION,
    )  # fmt: skip


def _setup(model: Architecture, gpu: str) -> Setup:
    stored: dict[str, Any] = {n: code(getattr(model.checkpoint, n)) for n in ("attention", "ffn", "experts", "kv")}
    return Setup(model, node_of(gpu), "vllm", PROMPT, PROMPT, Pool(), **stored)


def _figures(model: Architecture, gpu: str) -> tuple[float, float, float, float]:
    """Seconds of a layer: of a batch, of a decoded token, of a prompt's token; and bytes that an engine may use."""
    setup = _setup(model, gpu)
    at, memory = platform_of(setup), setup.node.device.memory_capacity
    one, many = (float(s) for s in decode(at.in_graph(), setup, Pool(), np.array(BATCHES), np.asarray(PROMPT)).total)
    each = (many - one) / (BATCHES[1] - BATCHES[0])
    prompt = float(prefill(at, setup, Pool(), np.ones(()), np.asarray(PROMPT)).total) / PROMPT
    return (
        (one - each) / model.layers,
        each / model.layers,
        max(prompt - one / PROMPT, 0.0) / model.layers,
        memory - max(RESERVED * memory, CONTEXT),
    )


@dataclass(frozen=True, eq=False)
class Served:
    """What became of requests; arrays ``[requests]``.

    Attributes:
        ttft, latency: seconds from arrival to the first and to the last token; infinite for what was lost.
        tokens: made. ways: that each had: one, and another for each time that a node left it.
        throughput: output tokens/s from the first arrival to the last token. least_room: of any cache at any time.
    """

    ttft: Array
    latency: Array
    tokens: Ints
    ways: Ints
    throughput: float
    least_room: float

    @property
    def lost(self) -> int:
        """Requests that never ended."""
        return int((~np.isfinite(self.latency)).sum())


def simulate(
    pool: Volunteers,
    held: Allocation,
    arrival: Array,
    isl: Ints,
    osl: Ints,
    stitch: bool = True,
    leaves: Sequence[tuple[float, int]] = (),
    again: bool = True,
) -> Served:
    """Serve requests on an allocation.

    Args:
        stitch: each request takes the shortest way through all nodes; else the pipeline with the least load.
        leaves: seconds and node of each leaving. Where the others do not hold all layers any more, they are allocated
            anew, and load what they lack at their own line's pace.
        again: allocate as ``allocate`` does; else ``fill`` in the order of the first pipelines.

    Raises:
        UsageError: a request fits no node's cache, or the nodes that stay do not hold the model.
    """
    order = [i for pipeline in held.pipelines for i in pipeline]
    order += [i for i in range(len(pool.gpu)) if i not in order]
    epochs, loading, gone = [held], [], np.zeros(len(pool.gpu), bool)
    for _, node in leaves:
        gone[node] = True
        now = _without(epochs[-1], gone)
        waits = 0.0
        if not (_covered(now, pool.layers) if stitch else now.pipelines):
            nodes = pool.nodes
            staying = replace(nodes, capacity=np.where(gone, 0, nodes.capacity))
            now = allocate(staying) if again else fill(staying, order)
            fetched = np.where(now.first == epochs[-1].first, now.last - epochs[-1].last, now.last - now.first)
            line = np.where(np.eye(len(gone), dtype=bool), 0.0, pool.pace).max(axis=1)
            waits = float((fetched.clip(0) * pool.layer / line).max())
        epochs.append(now)
        loading.append(waits)
    room = np.stack([pool.room(e) for e in epochs])
    pipes = np.full((len(epochs), 0, 1), -1, np.int64)
    if not stitch:
        shape = max(len(e.pipelines) for e in epochs), max(len(p) for e in epochs for p in e.pipelines)
        pipes = np.full((len(epochs), *shape), -1, np.int64)
        for e, epoch in enumerate(epochs):
            for p, pipeline in enumerate(epoch.pipelines):
                pipes[e, p, : len(pipeline)] = pipeline
    began, ended, ways, made, least = serve(
        arrival, isl, osl, pool.layers, pool.fixed, pool.each, pool.prompt, pool.link, pool.pace, pool.width,
        np.stack([e.first for e in epochs]), np.stack([e.last for e in epochs]), room,
        np.array([t for t, _ in leaves]), np.array([n for _, n in leaves], np.int64), np.array(loading), pipes,
    )  # fmt: skip
    if not ways.all():
        r = int(np.flatnonzero(ways == 0)[0])
        raise UsageError(f"request {r} of {isl[r] + osl[r]} tokens fits no way through the caches; give more nodes")
    span = np.max(ended[np.isfinite(ended)], initial=arrival[0]) - arrival[0]
    return Served(began - arrival, ended - arrival, made, ways, float(made.sum() / max(span, 1e-9)), float(least))


def _without(held: Allocation, gone: NDArray[np.bool_]) -> Allocation:
    """The allocation when some nodes have left and nobody takes their place."""
    whole = tuple(p for p in held.pipelines if not gone[list(p)].any())
    return Allocation(held.first, np.where(gone, held.first, held.last), whole)


def _covered(held: Allocation, layers: int) -> bool:
    """Whether every layer lies on some node: ways may change nodes between any two layers."""
    at = np.arange(layers)
    return bool(((held.first[:, None] <= at) & (at < held.last[:, None])).any(axis=0).all())


def requests(count: int, rate: float, isl: float, osl: float, seed: int) -> tuple[Array, Ints, Ints]:
    """Poisson arrivals in seconds, and lengths between half of their mean and one and a half, ``[requests]`` each."""
    random = np.random.default_rng(seed)
    arrival = random.exponential(1 / rate, count).cumsum()
    prompt, answer = np.maximum(1, np.rint(random.uniform(0.5, 1.5, (2, count)) * [[isl], [osl]])).astype(np.int64)
    return arrival, prompt, answer


def _explain(
    model: str, gpus: tuple[str, ...], nodes: int, regions: int, rate: float, count: int, isl: float, osl: float,
    leave: int, seed: int,
) -> Explanation:  # fmt: skip
    require_positive(nodes=nodes, rate=rate, count=count, isl=isl, osl=osl)
    if not 0 <= leave < nodes:
        raise UsageError(f"{leave} of {nodes} nodes cannot leave; give 0 to {nodes - 1}")
    random = np.random.default_rng(seed)
    pool = volunteers(read(model), random.choice(gpus, nodes).tolist(), regions, seed)
    traffic = requests(count, rate, isl, osl, seed)
    mine = allocate(pool.nodes)
    largest = np.argsort(-pool.nodes.capacity, kind="stable").tolist()
    filled, as_come = fill(pool.nodes, largest), fill(pool.nodes, range(nodes))
    runs = {
        "two phases": simulate(pool, mine, *traffic),
        "two phases, replicas kept apart": simulate(pool, mine, *traffic, stitch=False),
        "filled, largest first": simulate(pool, filled, *traffic, stitch=False, again=False),
        "filled as they come": simulate(pool, as_come, *traffic, stitch=False, again=False),
    }
    if leave:
        when = traffic[0][-1] * (1 + np.arange(leave)) / (leave + 1)
        who = random.permutation(nodes)[:leave]
        runs[f"two phases, {leave} leave"] = simulate(
            pool, mine, *traffic, leaves=list(zip(when.tolist(), who.tolist(), strict=True))
        )
    p50 = {name: float(np.median(run.latency)) for name, run in runs.items()}
    made = {name: run.throughput for name, run in runs.items()}
    fillings = [name for name in runs if name.startswith("filled")]
    rows = tuple(
        {
            "way": name,
            "p50_latency": p50[name],
            "p50_ttft": float(np.median(run.ttft)),
            "tokens_per_second": made[name],
            "ended": count - run.lost,
            "ways_of_a_request": float(run.ways.mean()),
        }
        for name, run in runs.items()
    )
    member = {i: str(p + 1) for p, pipeline in enumerate(mine.pipelines) for i in pipeline}
    return Explanation(
        figures={
            "replicas": len(mine.pipelines),
            "stages_of_a_replica": float(np.mean([len(p) for p in mine.pipelines])),
            "p50_latency": p50["two phases"],
            "tokens_per_second": made["two phases"],
            "latency_ratio": min(p50[name] for name in fillings) / p50["two phases"],
            "throughput_ratio": made["two phases"] / max(made[name] for name in fillings),
        },
        tables=(
            Table("What becomes of the requests", rows),
            Table.of(
                "Layers of each node",
                node=np.arange(nodes),
                gpu=pool.gpu,
                region=pool.region,
                replica=[member.get(i, "backs up") for i in range(nodes)],
                first_layer=mine.first,
                layers=mine.last - mine.first,
                most_layers=pool.nodes.capacity,
            ),
        ),
        says=(
            f"{len(mine.pipelines)} replicas of {pool.layers} layers; filled one after another the nodes make "
            f"{len(filled.pipelines)} (largest first) or {len(as_come.pipelines)}.",
        ),
    )


TOPIC = Topic(
    "decentralized",
    "How do unlike GPUs that volunteers lend serve a model together?",
    "Tong et al., Parallax: Efficient LLM Inference Service over Decentralized Environment, 2025 (arXiv 2509.26182)",
    (
        MODEL,
        Option("gpus", names, "Devices, with commas between them, of which each node has one at random.", GPUS),
        Option("nodes", int, "How many nodes.", 20),
        Option("regions", int, "Regions that they live in.", 3),
        Option("rate", float, "Requests a second.", 3.0),
        Option("count", int, "Requests in all.", 300),
        Option("isl", float, "Mean tokens of a prompt.", 500.0),
        Option("osl", float, "Mean tokens of an answer.", 128.0),
        Option("leave", int, "Nodes that leave while requests are served.", 0),
        Option("seed", int, "Of nodes, places and requests.", 0),
    ),
    _explain,
    "--model Qwen/Qwen3-32B --nodes 20 --rate 10 --leave 2",
)
