"""nearpeak: how near the hardware's peak is an ML workload, and what brings it nearer.

Four verbs: ``predict`` (time, memory, energy, money), ``plan`` (hardware, configuration, techniques), ``apply``
(do it to the real model), ``prove`` (measure it). Importing this package loads none of its rooms.
"""

__version__ = "0.1.0"
