"""Techniques: everything we know that makes a Setup better, each with its paper, its conditions and its effect.

Here live the registry and one module per family. Here live no implementations (they are in the torch wing, and a
technique names the command that runs them) and no search (that is ``plan``).
"""

from nearpeak.techniques import cache, pools, weights
from nearpeak.techniques.technique import LOSSLESS, Quality, Slot, Technique, register, technique, techniques

__all__ = [
    "LOSSLESS",
    "Quality",
    "Slot",
    "Technique",
    "cache",
    "pools",
    "register",
    "technique",
    "techniques",
    "weights",
]
