"""Plans: which hardware, configuration and techniques reach a goal best, and why.

Here live goals, the space of Setups, the planner that prices all of it, and explanations. Here live no cost
functions (``cost``), no techniques (``techniques``), and no files or printing (``export``, ``report``).
"""

from nearpeak.plan.explain import Explained, Figure, Lever, explain, explained, levers, record
from nearpeak.plan.goal import Goal, Objective
from nearpeak.plan.planner import Candidate, Miss, Plans, Point, base_setup, check_lengths, plan
from nearpeak.plan.shortlist import shortlist
from nearpeak.plan.space import Fleet, Variant, layouts, variants

__all__ = [
    "Candidate",
    "Explained",
    "Figure",
    "Fleet",
    "Goal",
    "Lever",
    "Miss",
    "Objective",
    "Plans",
    "Point",
    "Variant",
    "base_setup",
    "check_lengths",
    "explain",
    "explained",
    "layouts",
    "levers",
    "plan",
    "record",
    "shortlist",
    "variants",
]
