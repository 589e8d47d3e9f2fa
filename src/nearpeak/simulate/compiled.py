"""How the compiled parts of the simulator are compiled.

They allocate nothing and count no references: a state of some thirty arrays goes from function to function for free.
Divisions follow NumPy's rules. ``inlined`` is for functions that are called in one or two places: compiled within
their callers, they cost no compilation of their own.
"""

from numba import njit

compiled = njit(cache=True, error_model="numpy", _nrt=False)
inlined = njit(cache=True, error_model="numpy", _nrt=False, inline="always")
