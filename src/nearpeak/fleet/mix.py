"""The cheapest mix of device types for traffic of many request sizes (Griggs et al. 2024, Melange, arXiv 2404.14527).

Small requests under a lax target are cheapest on small devices, whose dollars buy more bandwidth; large ones, or a
tight target, need large devices. Traffic is sorted into buckets of like sizes (``mix_rates``), each bucket's largest
rate within the targets on each type is computed from ``cost``, and an integer program deals slices of buckets to types
(``mix_packing``). A type is a device and how many of them share the model: each is a column of the program.

``run`` then serves the requests by events: those of a bucket go to types at random in the shares that the program
found, and within a type to the least loaded instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import ledger
from nearpeak.errors import UsageError
from nearpeak.fleet.mix_packing import Packing, cheapest, loads
from nearpeak.fleet.mix_rates import ISL_EDGES, OSL_EDGES, Buckets, buckets, most_rates, token_budget
from nearpeak.setup import Setup
from nearpeak.topic import MODEL, Explanation, Option, Table, Topic, names, numbers, require_positive
from nearpeak.workload.traffic import LogNormal, Requests, Trace, Traffic, poisson, read_trace

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Kind:
    """A device type, and how many of them share one copy of the model.

    Attributes:
        setup: one instance. price: dollars an hour of it.
    """

    setup: Setup
    price: float

    @property
    def gpu(self) -> str:
        """Name of the device."""
        return self.setup.node.device.name

    @property
    def devices(self) -> int:
        """Of an instance."""
        return int(self.setup.decode.instance_devices)

    @property
    def title(self) -> str:
        """As a table writes it: ``2 x l4``, or the device alone."""
        return self.gpu if self.devices == 1 else f"{self.devices} x {self.gpu}"


def kinds(
    model: str, gpus: Sequence[str], requests: Requests, tpot: float, late: float = 0.01, engine: str = "vllm",
    prices: Sequence[float] = (), **formats: Any,  # noqa: ANN401 (codes or arrays of them)
) -> list[Kind]:  # fmt: skip
    """Every device of ``gpus``, alone and by tensor parallelism over powers of two of a node, that holds the model.

    Args:
        tpot: seconds that no step takes longer than, but for a share ``late`` of prompts. prices: dollars an hour of
            each device; those of the catalogue if none.

    Raises:
        UnknownName: of a model or device.
        UsageError: a device has no price, there are more or fewer prices than devices, or none holds the model.
    """
    from nearpeak.case import setup
    from nearpeak.hardware import node_of

    if prices and len(prices) != len(gpus):
        raise UsageError(f"{len(prices)} prices for {len(gpus)} devices; give one for each, or none")
    found, long = [], float(np.quantile(requests.isl, 1 - late))
    isl, osl = float(requests.isl.mean()), float(requests.osl.mean())
    for i, gpu in enumerate(gpus):
        node = node_of(gpu)
        price = prices[i] if prices else node.device.price_per_hour
        if price is None:
            raise UsageError(f"{node.device.title} has no price in the catalogue; give --prices")
        require_positive(price=price)
        widths = [2**k for k in range(node.count.bit_length()) if 2**k <= node.count]
        for devices in widths:
            own = setup(model, gpu, devices, isl, osl, engine, **formats)
            if ledger(own, own.decode).fits:
                found.append(Kind(replace(own, chunk=token_budget(own, tpot, long)), price * devices))
    if not found:
        raise UsageError(f"{model} fits a node of none of {', '.join(gpus)}; give larger devices")
    return found


@dataclass(frozen=True, eq=False)
class Mix:
    """The cheapest mix, and beside it the cheapest of each device type alone.

    Attributes:
        kinds: columns. sizes: rows. most: requests/s of each bucket on one instance ``[buckets, kinds]``.
        packing: the mix. alone: packings of one device type, by its name; None where it cannot serve all buckets.
    """

    kinds: list[Kind]
    sizes: Buckets
    most: Array
    packing: Packing
    alone: dict[str, Packing | None]


def plan(
    columns: list[Kind], sizes: Buckets, tpot: float, ttft: float = np.inf, late: float = 0.01, slices: int = 8,
    most: int = 256, seconds: float = 60.0,
) -> Mix:  # fmt: skip
    """Deal buckets to types at the fewest dollars an hour.

    Args:
        tpot, ttft: targets in seconds. late: share of requests that may miss them. slices: of a bucket.
        most: requests that an instance runs at once. seconds: for each of the integer programs.

    Raises:
        UsageError: a bucket has no type that serves it within the targets.
    """
    require_positive(tpot=tpot, late=late)
    if not (ttft > 0 and late < 1):
        raise UsageError(f"a target of {ttft:g} s for ttft and a share of {late:g}; give seconds above 0 and below 1")
    rates = np.stack([most_rates(kind.setup, sizes, tpot, ttft, late, most) for kind in columns], axis=1)
    if not (rates > 0).any(1).all():
        b = int(np.argmin((rates > 0).any(1)))
        raise UsageError(
            f"requests of {sizes.isl[b]:.0f} tokens in and {sizes.osl[b]:.0f} out are served by none of "
            f"{', '.join(kind.title for kind in columns)} within {tpot:g} s a token; give faster devices or more time"
        )
    load, price = loads(sizes.rate, rates), np.array([kind.price for kind in columns])
    alone: dict[str, Packing | None] = {}
    for gpu in dict.fromkeys(kind.gpu for kind in columns):
        own = np.array([kind.gpu == gpu for kind in columns])
        able = np.isfinite(load[:, own]).any(1).all()
        alone[gpu] = _widened(cheapest(load[:, own], price[own], slices, seconds), own) if able else None
    return Mix(columns, sizes, rates, cheapest(load, price, slices, seconds), alone)


def _widened(packing: Packing, columns: NDArray[np.bool_]) -> Packing:
    """A packing of some columns among all."""
    count, share = np.zeros(columns.size, np.int64), np.zeros((len(packing.share), columns.size))
    count[columns], share[:, columns] = packing.count, packing.share
    return replace(packing, count=count, share=share)


@dataclass(frozen=True, eq=False)
class Served:
    """Requests as a mix served them, arrays ``[completed]``: the column each went to, and seconds. ``rejected``: how
    many were longer than an instance has room for.
    """

    kind: NDArray[np.int64]
    ttft: Array
    tpot: Array
    rejected: int

    def within_share(self, tpot: float, ttft: float = np.inf) -> float:
        """Share of all requests within targets; rejected ones are not."""
        return float(((self.tpot <= tpot) & (self.ttft <= ttft)).sum() / (self.tpot.size + self.rejected))


def run(mix: Mix, packing: Packing, requests: Requests, most: int = 256, seed: int = 0) -> Served:
    """Serve requests, those that ``mix.sizes`` was made of, by the instances of a packing.

    Raises:
        UsageError: there are more or fewer requests than were sorted into buckets.
    """
    from nearpeak.simulate.deploy import deploy
    from nearpeak.simulate.serving import feed, serve

    if requests.isl.size != mix.sizes.of.size:
        raise UsageError(f"{requests.isl.size} requests, but {mix.sizes.of.size} were sorted into buckets")
    rng = np.random.default_rng(seed)
    until = np.cumsum(packing.share, axis=1)[mix.sizes.of]
    kind = (rng.random(requests.isl.size)[:, None] * until[:, -1:] >= until).sum(1)
    longest = int((requests.isl + requests.osl).max())
    parts, rejected = [], 0
    for k in np.unique(kind).tolist():
        own = mix.kinds[k].setup
        own = replace(own, decode=replace(own.decode, replicas=int(packing.count[k]), batch=1))
        mine = kind == k
        own_requests = feed(requests.arrival[mine], requests.isl[mine], requests.osl[mine])
        result = serve(deploy(own, most=most, longest=longest), own_requests, seed=seed, keep=True)
        done = result.requests
        assert done is not None
        parts.append((np.full(result.completed, k), done["ttft"], done["tpot"]))
        rejected += result.rejected
    served_by, ttft, tpot = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Served(served_by, ttft, tpot, rejected)


def drawn(
    trace: Path | None, rate: float, n: int, seed: int, isl: float = 0.0, osl: float = 0.0, spread: float = 0.0
) -> Requests:
    """Requests that arrive at random at ``rate``: their lengths those of a trace in a random order, or lognormal."""
    lengths: Traffic | Trace = (
        read_trace(trace)
        if trace is not None
        else Traffic(LogNormal(isl, spread), LogNormal(osl, spread), poisson(rate))
    )
    if isinstance(lengths, Traffic):
        return lengths.sample(n, seed)
    rng = np.random.default_rng(seed)
    one = rng.integers(lengths.isl.size, size=n)
    return Requests(np.cumsum(rng.exponential(1 / rate, n)), lengths.isl[one], lengths.osl[one])


def _explain(
    model: str, gpus: tuple[str, ...], trace: str | None, rate: float, isl: float, osl: float, spread: float,
    tpot: float, ttft: float | None, late: float, slices: int, prices: tuple[float, ...] | None, weights: str,
    engine: str, isl_edges: tuple[float, ...], osl_edges: tuple[float, ...], requests: int, seed: int,
) -> Explanation:  # fmt: skip
    from nearpeak.formats import code

    require_positive(rate=rate, tpot=tpot, late=late)
    if not late < 1:
        raise UsageError(f"late must be below 1, not {late:g}")
    if requests < 1:
        raise UsageError(f"{requests} requests; at least 1 is needed")
    asked = drawn(None if trace is None else Path(trace), rate, requests, seed, isl, osl, spread)
    sizes = buckets(asked.isl, asked.osl, rate, isl_edges, osl_edges)
    stored = code(weights)
    columns = kinds(
        model, gpus, asked, tpot, late, engine, prices or (), attention=stored, ffn=stored, experts=stored
    )  # fmt: skip
    first = np.inf if ttft is None else ttft
    mix = plan(columns, sizes, tpot, first, late, slices)
    served = run(mix, mix.packing, asked, seed=seed)
    within = served.within_share(tpot, first)
    said = _said(mix)
    said.append(f"Simulated, {within:.2%} of {requests} requests are within the targets, {1 - late:.2%} are asked for.")
    if within < 1 - late:
        said.append("The closed forms were too hopeful here: give a smaller --late.")
    return Explanation(
        {
            "dollars_per_hour": mix.packing.price,
            "least_dollars_per_hour": mix.packing.least,
            "within_targets_share": within,
            "rejected": served.rejected,
            "buckets": sizes.rate.size,
        },
        (_mix_table(mix, served), _alone_table(mix)),
        tuple(said),
    )


def _said(mix: Mix) -> list[str]:
    price = mix.packing.price
    used = [(n, kind.title) for n, kind in zip(mix.packing.count, mix.kinds, strict=True) if n]
    said = [f"Rent {', '.join(f'{n} of {title}' for n, title in used)}: {price:.4g} $/h."]
    alone = {gpu: own.price for gpu, own in mix.alone.items() if own is not None}
    if alone:
        best, worst = min(alone, key=alone.__getitem__), max(alone, key=alone.__getitem__)
        said.append(
            f"{1 - price / alone[best]:.0%} below the cheapest single type, {best}, and {1 - price / alone[worst]:.0%} "
            f"below the dearest, {worst}."
        )
    said += [f"{gpu} alone cannot serve every size within the targets." for gpu in mix.alone if gpu not in alone]
    if mix.packing.least < price * (1 - 1e-6):
        said.append(f"The solver ran out of time: perhaps {mix.packing.least:.4g} $/h would do.")
    return said


def _mix_table(mix: Mix, served: Served) -> Table:
    sizes, rows = mix.sizes, []
    for k in np.flatnonzero(mix.packing.count):
        kind, rate, own = mix.kinds[k], mix.packing.share[:, k] * mix.sizes.rate, served.kind == k
        rows.append(
            {
                "instance": kind.title,
                "instances": int(mix.packing.count[k]),
                "dollars_per_hour": float(mix.packing.count[k] * kind.price),
                "token_budget": int(np.asarray(kind.setup.chunk)),
                "request_rate": float(rate.sum()),
                "mean_isl": float(sizes.isl @ rate / rate.sum()),
                "mean_osl": float(sizes.osl @ rate / rate.sum()),
                "p99_ttft": _p99(served.ttft[own]),
                "p99_tpot": _p99(served.tpot[own]),
            }
        )
    return Table("The mix", tuple(rows))


def _alone_table(mix: Mix) -> Table:
    rows = [
        {
            "gpu": gpu,
            "instances": ", ".join(f"{n} of {kind.title}" for n, kind in zip(own.count, mix.kinds, strict=True) if n),
            "dollars_per_hour": own.price,
            "mix_saves_share": 1 - mix.packing.price / own.price,
        }
        for gpu, own in mix.alone.items()
        if own is not None
    ]
    return Table("One device type alone", tuple(rows))


def _p99(seconds: Array) -> float | None:
    return float(np.percentile(seconds, 99)) if seconds.size else None


TOPIC = Topic(
    "mix",
    "Which mix of device types serves requests of many sizes at the fewest dollars within latency targets?",
    "Griggs et al., Melange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity, 2024 "
    "(arXiv 2404.14527)",
    (
        MODEL,
        Option("gpus", names, "Devices to choose from, between commas.", ("l4", "a10g", "a100", "h100")),
        Option("trace", str, "Lengths of a trace (CSV or JSON lines), in place of those below.", None),
        Option("rate", float, "Requests per second, arriving at random.", 8.0),
        Option("isl", float, "Mean tokens of a prompt.", 500.0),
        Option("osl", float, "Mean tokens of an answer.", 200.0),
        Option("spread", float, "Deviation of lengths over their mean.", 1.0),
        Option("tpot", float, "Target of a request in seconds, per later token.", 0.12),
        Option("ttft", float, "Target in seconds to the first token; none if not given.", None),
        Option("late", float, "Share of requests that may miss a target.", 0.01),
        Option("slices", int, "Of a bucket of requests of like sizes: each goes to one type.", 8),
        Option("prices", numbers, "Dollars an hour of each device; those of the catalogue if not given.", None),
        Option("weights", str, "Number format of the weights.", "bf16"),
        Option("engine", str, "Serving engine whose host time counts.", "vllm"),
        Option("isl_edges", numbers, "Tokens of prompts between buckets.", ISL_EDGES),
        Option("osl_edges", numbers, "Tokens of answers between buckets.", OSL_EDGES),
        Option("requests", int, "Requests that are drawn, sorted and simulated.", 20_000),
        Option("seed", int, "Of what is drawn at random.", 0),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-8B --rate 48",
)
