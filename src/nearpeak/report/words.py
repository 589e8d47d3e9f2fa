"""Plans in a few words: layout, number formats, devices, mode."""

from typing import TYPE_CHECKING

from nearpeak.report.format import TIMES

if TYPE_CHECKING:
    from nearpeak.setup import Pool, Setup


def mode(setup: "Setup") -> str:
    """Whether prefill and decode share devices."""
    return "agg" if setup.prefill is None else "disagg"


def layout(pool: "Pool") -> str:
    """A pool's layout: ``tp2 pp2``, its replicas before it; parts that are 1 are left out, but for tp."""
    sizes = {name: int(a) for name, a in pool.arrays().items()}
    parts = [f"tp{sizes['tp']}"]
    parts += [f"{name}{sizes[name]}" for name in ("pp", "dp") if sizes[name] > 1]
    if sizes["moe_ep"] > 1:
        parts.append(f"ep{sizes['moe_ep']}")
    times = f"{sizes['replicas']}{TIMES}" if sizes["replicas"] > 1 else ""
    return times + " ".join(parts)


def layouts(setup: "Setup") -> list[str]:
    """The layout of each pool, prefill first."""
    if setup.prefill is None:
        return [f"agg {layout(setup.decode)}"]
    return [f"prefill {layout(setup.prefill)}", f"decode {layout(setup.decode)}"]


def devices(setup: "Setup") -> str:
    """How many devices of which kind."""
    return f"{int(setup.devices)} {TIMES} {setup.node.device.title}"


def batches(setup: "Setup") -> list[str]:
    """Requests in flight in each attention replica of each pool, in the order of ``layouts``."""
    pools = (setup.decode,) if setup.prefill is None else (setup.prefill, setup.decode)
    return [f"{int(p.arrays()['batch'])}" for p in pools]


def formats(setup: "Setup") -> str:
    """Number formats: weights, experts where they differ, KV cache."""
    from nearpeak.plan.explain import formats as by_part
    from nearpeak.workload import Experts

    named = by_part(setup)
    parts = ["attention", "ffn"] + ["experts"] * any(isinstance(b.ffn, Experts) for b in setup.model.blocks)
    if len({named[part] for part in parts}) == 1:
        weights = named["attention"]
    else:
        weights = ", ".join(f"{part} {named[part]}" for part in parts)
    return f"{weights}, KV {named['kv']}"
