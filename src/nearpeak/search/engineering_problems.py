"""Five designs of mechanical engineering: constrained, of a few variables, with best values known to the literature.

Each has its published bounds and constraints, inputs stretched from the unit cube. Variables that are whole numbers in
some publications are continuous here, and the best values are those of the continuous problems.

Coello: Use of a Self-Adaptive Penalty Approach for Engineering Optimization Problems, Computers in Industry 2000
(beam, spring, vessel). Golinski: An Adaptive Optimization System Applied to Machine Synthesis, 1973 (speed reducer).
Nowcki, 1974 (three-bar truss). As a benchmark of Bayesian optimization: Yu, Picard, Ahmed, arXiv:2406.02883 (2024).
"""

from typing import Final

import numpy as np

from nearpeak.search.parameters import Floats
from nearpeak.search.problems import Problem


def _variables(x: Floats, low: Floats, high: Floats) -> Floats:
    """One row a variable, ``[d, n]``."""
    return np.asarray((low + x * (high - low)).T)


BEAM: Final = np.array([[0.1, 0.1, 0.1, 0.1], [2.0, 10.0, 10.0, 2.0]])
"""Low and high: weld thickness, weld length, height and width of the bar, inches."""


def beam_cost(x: Floats) -> Floats:
    """Cost of a welded beam, dollars."""
    h, l, t, b = _variables(x, *BEAM)  # noqa: E741
    return np.asarray(1.10471 * h**2 * l + 0.04811 * t * b * (14 + l))


def beam_limits(x: Floats) -> Floats:
    """Shear and bending stress (psi), geometry, cost, thickness, deflection (in), buckling load (lb), ``[n, 7]``."""
    h, l, t, b = _variables(x, *BEAM)  # noqa: E741
    load, arm = 6_000.0, 14.0
    direct = load / (np.sqrt(2) * h * l)
    radius = np.sqrt(l**2 / 4 + ((h + t) / 2) ** 2)
    moment, polar = load * (arm + l / 2), 2 * np.sqrt(2) * h * l * (l**2 / 12 + ((h + t) / 2) ** 2)
    torsion = moment * radius / polar
    shear = np.sqrt(direct**2 + direct * torsion * l / radius + torsion**2)
    bending, deflection = 6 * load * arm / (b * t**2), 4 * load * arm**3 / (30e6 * t**3 * b)
    buckling = 4.013 * 30e6 * t * b**3 / (6 * arm**2) * (1 - t / (2 * arm) * np.sqrt(30e6 / (4 * 12e6)))
    return np.column_stack(
        [
            shear - 13_600, bending - 30_000, h - b, 0.10471 * h**2 + 0.04811 * t * b * (14 + l) - 5,
            0.125 - h, deflection - 0.25, load - buckling,
        ]
    )  # fmt: skip


SPRING: Final = np.array([[0.05, 0.25, 2.0], [2.0, 1.3, 15.0]])
"""Diameter of the wire and of the coil (inches), active coils."""


def spring_weight(x: Floats) -> Floats:
    """Weight of a tension spring."""
    d, coil, turns = _variables(x, *SPRING)
    return np.asarray((turns + 2) * coil * d**2)


def spring_limits(x: Floats) -> Floats:
    """Deflection, shear stress, surge frequency, outer diameter, ``[n, 4]``."""
    d, coil, turns = _variables(x, *SPRING)
    bent = 12_566 * d**3 * (coil - d)
    bent = np.where(np.abs(bent) < 1e-9, 1e-9, bent)
    return np.column_stack(
        [
            1 - coil**3 * turns / (71_785 * d**4),
            (4 * coil**2 - d * coil) / bent + 1 / (5_108 * d**2) - 1,
            1 - 140.45 * d / (coil**2 * turns),
            (d + coil) / 1.5 - 1,
        ]
    )


VESSEL: Final = np.array([[0.0625, 0.0625, 10.0, 10.0], [6.1875, 6.1875, 200.0, 200.0]])
"""Thickness of shell and head, inner radius, length, inches."""


def vessel_cost(x: Floats) -> Floats:
    """Cost of a pressure vessel, dollars."""
    shell, head, r, length = _variables(x, *VESSEL)
    return np.asarray(
        0.6224 * shell * r * length + 1.7781 * head * r**2 + 3.1661 * shell**2 * length + 19.84 * shell**2 * r
    )


def vessel_limits(x: Floats) -> Floats:
    """Thickness of shell and head, volume (cubic inches), length, ``[n, 4]``."""
    shell, head, r, length = _variables(x, *VESSEL)
    volume = np.pi * r**2 * length + 4 / 3 * np.pi * r**3
    return np.column_stack([0.0193 * r - shell, 0.00954 * r - head, 1_296_000 - volume, length - 240])


REDUCER: Final = np.array([[2.6, 0.7, 17, 7.3, 7.3, 2.9, 5.0], [3.6, 0.8, 28, 8.3, 8.3, 3.9, 5.5]])
"""Face width, module, teeth, lengths and diameters of two shafts, cm."""


def reducer_weight(x: Floats) -> Floats:
    """Weight of a speed reducer."""
    b, m, z, l1, l2, d1, d2 = _variables(x, *REDUCER)
    teeth = 0.7854 * b * m**2 * (3.3333 * z**2 + 14.9334 * z - 43.0934)
    shafts = -1.508 * b * (d1**2 + d2**2) + 7.4777 * (d1**3 + d2**3) + 0.7854 * (l1 * d1**2 + l2 * d2**2)
    return np.asarray(teeth + shafts)


def reducer_limits(x: Floats) -> Floats:
    """Bending and contact stress of the teeth, deflection and stress of the shafts, geometry, ``[n, 11]``."""
    b, m, z, l1, l2, d1, d2 = _variables(x, *REDUCER)
    return np.column_stack(
        [
            27 / (b * m**2 * z) - 1,
            397.5 / (b * m**2 * z**2) - 1,
            1.93 * l1**3 / (m * z * d1**4) - 1,
            1.93 * l2**3 / (m * z * d2**4) - 1,
            np.sqrt((745 * l1 / (m * z)) ** 2 + 16.9e6) / (110 * d1**3) - 1,
            np.sqrt((745 * l2 / (m * z)) ** 2 + 157.5e6) / (85 * d2**3) - 1,
            m * z / 40 - 1,
            5 * m / b - 1,
            b / (12 * m) - 1,
            (1.5 * d1 + 1.9) / l1 - 1,
            (1.1 * d2 + 1.9) / l2 - 1,
        ]
    )


TRUSS: Final = np.array([[0.01, 0.01], [1.0, 1.0]])
"""Cross sections of the outer bars and the middle bar, square cm."""


def truss_volume(x: Floats) -> Floats:
    """Volume of a truss of three bars, cubic cm."""
    outer, middle = _variables(x, *TRUSS)
    return np.asarray((2 * np.sqrt(2) * outer + middle) * 100)


def truss_limits(x: Floats) -> Floats:
    """Stress of each bar over its limit of 2 kN per square cm, ``[n, 3]``."""
    outer, middle = _variables(x, *TRUSS)
    shared = np.sqrt(2) * outer**2 + 2 * outer * middle
    return np.column_stack(
        [
            (np.sqrt(2) * outer + middle) / shared * 2 - 2,
            middle / shared * 2 - 2,
            2 / (outer + np.sqrt(2) * middle) - 2,
        ]
    )


ENGINEERING: Final = {
    problem.name: problem
    for problem in (
        Problem("beam", 4, beam_cost, 1.724852309, 90.0, beam_limits),
        Problem("spring", 3, spring_weight, 0.012665232788, 88.0, spring_limits),
        Problem("vessel", 4, vessel_cost, 5885.332774, 1e6, vessel_limits),
        Problem("speed-reducer", 7, reducer_weight, 2994.4710661, 5e3, reducer_limits),
        Problem("truss", 2, truss_volume, 263.8958433765, 380.0, truss_limits),
    )
}
"""By name; ``optimum`` is the best value known."""
