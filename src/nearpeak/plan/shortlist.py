"""Which of the many candidates of a search a person is shown."""

from nearpeak.plan.planner import Candidate, Plans
from nearpeak.setup import Pool


def shortlist(plans: Plans, top: int) -> list[Candidate]:
    """The best ``top`` candidates, and the best of each mode even where it ranks lower.

    Left out is what a shown plan of the same layout makes pointless: no cheaper, and no better in quality.
    """
    shown: list[Candidate] = []
    kept: dict[tuple[object, ...], float] = {}
    missing = {c.block.mode for c in plans.candidates}
    for candidate in plans.candidates:
        if len(shown) >= top and candidate.block.mode not in missing:
            if not missing:
                break
            continue
        setup = candidate.setup
        layout = (setup.engine, setup.node.name, *(_layout(pool) for pool in setup.pools))
        if candidate.variant.quality > kept.get(layout, -1.0):
            kept[layout] = candidate.variant.quality
            shown.append(candidate)
            missing.discard(setup.mode)
    return shown


def _layout(pool: Pool) -> tuple[object, ...]:
    """What makes an instance what it is; replicas and batch do not."""
    return tuple(float(a) for name, a in pool.arrays().items() if name not in ("replicas", "batch"))
