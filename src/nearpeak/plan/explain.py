"""Why a plan is what it is: its figures with their evidence, where the time goes, and what would move it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import Prediction, Step, costs, evidence, intervals, platform_of, predict
from nearpeak.cost.engine import engine_on
from nearpeak.formats import FORMATS
from nearpeak.hardware import Link
from nearpeak.plan.planner import Candidate
from nearpeak.setup import Pool, Setup


@dataclass(frozen=True)
class Figure:
    """A predicted figure: the value, the interval that holds 80 % of measurements, and what it rests on."""

    value: float
    low: float
    high: float
    evidence: str


@dataclass(frozen=True)
class Lever:
    """What a plan gains if one thing were better: its figures over those of today (below 1 is faster)."""

    name: str
    ttft: float
    tpot: float
    request_rate: float


@dataclass(frozen=True)
class Explained:
    """A plan in full.

    Attributes:
        figures: by name; ttft, tpot, latency in seconds, request_rate in 1/s, per-token costs in J, $ and kg CO2e.
        memory: bytes on a device of each pool, by use.
        decode, prefill: seconds of a step by what it spends them on, host overhead included.
        bottleneck: what takes most of the time of a decode step.
        levers: what would move the plan, most helpful for ``tpot`` first.
        load: share of time that what prefills is busy.
    """

    setup: Setup
    techniques: tuple[str, ...]
    quality: float
    figures: dict[str, Figure]
    memory: dict[str, dict[str, float]]
    decode: dict[str, float]
    prefill: dict[str, float]
    bottleneck: str
    levers: tuple[Lever, ...]
    load: float = 0.0

    @property
    def starts(self) -> bool:
        """Whether every pool fits in memory, and prompts are served as fast as they come."""
        return not self.verdict

    @property
    def verdict(self) -> str:
        """Why the Setup will not run, and what would help; empty where it will."""
        for pool, held in self.memory.items():
            used = sum(v for use, v in held.items() if use != "capacity")
            if used > held["capacity"]:
                over = f"needs {used / 1e9:.1f} GB of {held['capacity'] / 1e9:.1f}"
                return f"will not start: a {pool} device {over}; use more devices, fewer bits or a smaller batch"
        if self.setup.prefill is not None and self.load >= 1:
            return f"no steady state: prompts come {self.load:.2f} times as fast as the prefill pool serves them"
        return ""


PARTS = ("matrices", "attention", "experts", "communication", "other")


def explain(setup: Setup, techniques: tuple[str, ...] = (), quality: float = 1.0) -> Explained:
    """Price one configuration again, in full.

    Args:
        setup: a single configuration (shape ``()``).
    """
    platform = platform_of(setup)
    predicted = predict(platform, setup)
    bill = costs(setup, predicted)
    rests_on = str(evidence(platform, setup))
    spread = intervals(setup.engine, setup.mode, rests_on)

    def figure(value: NDArray[np.float64], kind: str, inverse: bool = False) -> Figure:
        low, high = spread[kind]
        factors = (1 / high, 1 / low) if inverse else (low, high)
        return Figure(float(value), float(value) * factors[0], float(value) * factors[1], rests_on)

    figures = {
        "ttft": figure(predicted.ttft, "ttft"),
        "tpot": figure(predicted.tpot, "tpot"),
        "latency": figure(predicted.latency, "latency"),
        "request_rate": figure(predicted.request_rate, "latency", inverse=True),
        "tokens_per_second": figure(predicted.request_rate * np.asarray(setup.osl, float), "latency", inverse=True),
        "tokens_per_second_per_device": figure(
            predicted.request_rate * np.asarray(setup.osl, float) / predicted.devices, "latency", inverse=True
        ),
        "power": figure(bill.power, "power"),
        "joules_per_token": figure(bill.energy, "energy"),
        "dollars_per_million_tokens": figure(bill.dollars * 1e6, "latency"),
        "kg_co2e_per_million_tokens": figure(bill.carbon * 1e6, "energy"),
    }
    times = predicted.times
    decode = _parts(times.decode) | {"engine": float(times.overhead)}
    ledgers = {"decode": predicted.memory} | (
        {"prefill": predicted.prefill_memory} if predicted.prefill_memory is not None else {}
    )
    return Explained(
        setup=setup,
        techniques=techniques,
        quality=quality,
        figures=figures,
        memory={
            pool: {
                name: float(getattr(ledger, name)) for name in ("weights", "kv", "activations", "reserved", "capacity")
            }
            for pool, ledger in ledgers.items()
        },
        decode=decode,
        prefill=_parts(times.prefill) | {"engine": float(times.prompt - times.prefill.total)},
        bottleneck=max(decode, key=lambda part: decode[part]),
        levers=levers(setup, predicted),
        load=float(predicted.load),
    )


def explained(candidate: Candidate) -> Explained:
    """A candidate of the planner in full."""
    names = tuple(t.name for t in candidate.variant.techniques)
    return explain(candidate.setup, names, candidate.variant.quality)


def _parts(step: Step) -> dict[str, float]:
    return {name: float(getattr(step, name)) for name in PARTS}


def levers(setup: Setup, now: Prediction) -> tuple[Lever, ...]:
    """The figures of a configuration if one resource were twice as good, all else equal; ``now``: as it is."""
    node, host = setup.node, engine_on(setup.engine, setup.node)
    device = node.device
    main = device.memory[0]
    wider = replace(device, memory=(replace(main, bandwidth=2 * main.bandwidth), *device.memory[1:]))
    quicker = replace(device, rates={rate: 2 * peak for rate, peak in device.rates.items()})
    network = node.network and _twice(node.network)
    closer = replace(node, scale_up=_twice(node.scale_up), network=network)
    lighter = {name: getattr(host, name) / 2 for name in ("step", "sequence", "layer", "request")}
    better = {
        "twice the memory bandwidth": (replace(node, device=wider), host),
        "twice the arithmetic": (replace(node, device=quicker), host),
        "twice the link speed, half its latency": (closer, host),
        "half the engine overhead": (node, replace(host, **lighter)),
    }
    found = []
    for name, (changed, changed_host) in better.items():
        other = replace(setup, node=changed)
        then = predict(platform_of(other), other, changed_host)
        ratios = (float(getattr(then, f)) / float(getattr(now, f)) for f in ("ttft", "tpot", "request_rate"))
        found.append(Lever(name, *ratios))
    return tuple(sorted(found, key=lambda lever: lever.tpot))


def _twice(link: Link) -> Link:
    return replace(link, bandwidth=2 * link.bandwidth, latency=link.latency / 2)


def record(plan: Explained) -> dict[str, Any]:
    """A plan as plain JSON values."""
    setup = plan.setup
    return {
        "model": setup.model.name,
        "engine": setup.engine,
        "device": setup.node.device.name,
        "node": setup.node.name,
        "devices": int(setup.devices),
        "mode": setup.mode,
        "isl": float(np.asarray(setup.isl)),
        "osl": float(np.asarray(setup.osl)),
        "formats": formats(setup),
        "chunk": int(np.asarray(setup.chunk)),
        "decode": _pool(setup.decode),
        "prefill": None if setup.prefill is None else _pool(setup.prefill),
        "techniques": list(plan.techniques),
        "quality": plan.quality,
        "figures": {name: vars(f) for name, f in plan.figures.items()},
        "starts": plan.starts,
        "verdict": plan.verdict,
        "memory": plan.memory,
        "decode_step": plan.decode,
        "prefill_step": plan.prefill,
        "bottleneck": plan.bottleneck,
        "levers": [vars(lever) for lever in plan.levers],
    }


def formats(setup: Setup) -> dict[str, str]:
    """The number formats of a single configuration, by part."""
    return {part: FORMATS[int(np.asarray(getattr(setup, part)))].name for part in ("attention", "ffn", "experts", "kv")}


def _pool(pool: Pool) -> dict[str, int]:
    return {name: int(a) for name, a in pool.arrays().items()}
