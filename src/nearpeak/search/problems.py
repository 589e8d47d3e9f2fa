"""Functions whose least value is known: what methods are compared on. All are minimised.

Inputs are in the unit cube, ``[n, d]``; each function stretches it to the domain on which it was published.
Surjanovic, Bingham: Virtual Library of Simulation Experiments (formulas and optima).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.search.parameters import Floats


@dataclass(frozen=True)
class Problem:
    """A function on the unit cube.

    Attributes:
        name: in kebab case. dimension: d. function: ``[n, d] -> [n]``. optimum: its least value where constraints
            hold. constraints: ``[n, d] -> [n, c]``, at most 0 where they hold; None without.
        span: largest minus least value over the cube, about: noise is given as a share of it.
    """

    name: str
    dimension: int
    function: Callable[[Floats], Floats]
    optimum: float
    span: float
    constraints: Callable[[Floats], Floats] | None = None


def _stretched(x: Floats, low: ArrayLike, high: ArrayLike) -> Floats:
    return np.asarray(np.asarray(low) + x * (np.asarray(high) - np.asarray(low)))


def branin(x: Floats) -> Floats:
    """Three equal minima, [-5, 10] x [0, 15]."""
    a, b = _stretched(x, [-5, 0], [10, 15]).T
    curve = b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6
    return np.asarray(curve**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10)


_HARTMANN_A: Final = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_HARTMANN_P: Final = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN_C: Final = np.array([1.0, 1.2, 3.0, 3.2])


def hartmann6(x: Floats) -> Floats:
    """Four wells in six dimensions."""
    inside = (_HARTMANN_A * (x[:, None, :] - _HARTMANN_P) ** 2).sum(-1)
    return np.asarray(-np.exp(-inside) @ _HARTMANN_C)


_HARTMANN_3_A: Final = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
_HARTMANN_3_P: Final = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])


def hartmann3(x: Floats) -> Floats:
    """Four wells in three dimensions."""
    inside = (_HARTMANN_3_A * (x[:, None, :] - _HARTMANN_3_P) ** 2).sum(-1)
    return np.asarray(-np.exp(-inside) @ _HARTMANN_C)


def ackley(x: Floats) -> Floats:
    """A funnel under ripples, [-32.768, 32.768]^d, its bottom off the centre of the cube by a fifth of the width."""
    z = _stretched(x - 0.1, -32.768, 32.768)
    return np.asarray(-20 * np.exp(-0.2 * np.sqrt((z * z).mean(1))) - np.exp(np.cos(2 * np.pi * z).mean(1)) + 20 + np.e)


def rosenbrock(x: Floats) -> Floats:
    """A bent valley, [-5, 10]^d."""
    z = _stretched(x, -5, 10)
    return np.asarray((100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(1))


def styblinski_tang(x: Floats) -> Floats:
    """2^d wells, [-5, 5]^d."""
    z = _stretched(x, -5, 5)
    return np.asarray(0.5 * (z**4 - 16 * z**2 + 5 * z).sum(1))


def michalewicz(x: Floats) -> Floats:
    """Narrow valleys, [0, pi]^d."""
    z = np.pi * x
    order = np.arange(1, x.shape[1] + 1)
    return np.asarray(-(np.sin(z) * np.sin(order * z**2 / np.pi) ** 20).sum(1))


def levy(x: Floats) -> Floats:
    """Ripples over a bowl, [-10, 10]^d."""
    w = 1 + (_stretched(x, -10, 10) - 1) / 4
    inner = (w[:, :-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:, :-1] + 1) ** 2)
    ends = np.sin(np.pi * w[:, 0]) ** 2 + (w[:, -1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[:, -1]) ** 2)
    return np.asarray(ends + inner.sum(1))


def goldstein_price(x: Floats) -> Floats:
    """Log of the polynomial with values from 3 to 10^6, [-2, 2]^2."""
    a, b = _stretched(x, -2, 2).T
    one = 1 + (a + b + 1) ** 2 * (19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2)
    two = 30 + (2 * a - 3 * b) ** 2 * (18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2)
    return np.asarray(np.log(one * two))


def six_hump_camel(x: Floats) -> Floats:
    """Six wells, two the deepest, [-3, 3] x [-2, 2]."""
    a, b = _stretched(x, [-3, -2], [3, 2]).T
    return np.asarray((4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + (-4 + 4 * b**2) * b**2)


def _gardner_constraint(x: Floats) -> Floats:
    """Inside a circle (Gelbart et al., UAI 2014): (a - 2.5)^2 + (b - 7.5)^2 <= 50."""
    a, b = _stretched(x, [-5, 0], [10, 15]).T
    return np.asarray(((a - 2.5) ** 2 + (b - 7.5) ** 2 - 50)[:, None])


def _hartmann_constraint(x: Floats) -> Floats:
    """Norm of the point at most 1 (Letham et al., Bayesian Analysis 2019)."""
    return np.asarray((np.sqrt((x * x).sum(1)) - 1)[:, None])


def _ackley_constraint(x: Floats) -> Floats:
    """Two half spaces that leave a third of the cube and cut the funnel's flank (Eriksson, Poloczek, AISTATS 2021)."""
    z = _stretched(x - 0.1, -32.768, 32.768)
    return np.column_stack([z.sum(1), np.sqrt((z * z).sum(1)) - 80])


def ackley_in(dimension: int) -> Problem:
    """Ackley in so many dimensions."""
    return Problem(f"ackley-{dimension}", dimension, ackley, 0.0, 22.0)


def styblinski_tang_in(dimension: int) -> Problem:
    """Styblinski-Tang in so many dimensions."""
    return Problem(
        f"styblinski-tang-{dimension}", dimension, styblinski_tang, -39.16616570377142 * dimension, 290.0 * dimension
    )


def rosenbrock_in(dimension: int) -> Problem:
    """Rosenbrock in so many dimensions."""
    return Problem(f"rosenbrock-{dimension}", dimension, rosenbrock, 0.0, 9e5 * (dimension - 1))


def levy_in(dimension: int) -> Problem:
    """Levy in so many dimensions."""
    return Problem(f"levy-{dimension}", dimension, levy, 0.0, 95.0 * dimension)


MICHALEWICZ: Final = {2: -1.8013034100985528, 5: -4.687658179, 10: -9.660151715641349}
"""Its optimum is known for these dimensions."""


def michalewicz_in(dimension: int) -> Problem:
    """Michalewicz in 2, 5 or 10 dimensions."""
    return Problem(f"michalewicz-{dimension}", dimension, michalewicz, MICHALEWICZ[dimension], float(dimension))


PROBLEMS: Final = {
    problem.name: problem
    for problem in (
        Problem("branin", 2, branin, 0.39788735772973816, 308.0),
        Problem("hartmann-3", 3, hartmann3, -3.86278214782076, 3.86),
        Problem("hartmann-6", 6, hartmann6, -3.322368011415515, 3.32),
        ackley_in(5),
        ackley_in(10),
        rosenbrock_in(5),
        styblinski_tang_in(7),
        michalewicz_in(10),
        levy_in(4),
        Problem("goldstein-price", 2, goldstein_price, np.log(3.0), 12.0),
        Problem("six-hump-camel", 2, six_hump_camel, -1.031628453489877, 164.0),
        Problem("branin-disk", 2, branin, 0.39788735772973816, 308.0, _gardner_constraint),
        Problem("hartmann-6-norm", 6, hartmann6, -3.322368011415515, 3.32, _hartmann_constraint),
        Problem("ackley-10-flank", 10, ackley, 0.0, 22.0, _ackley_constraint),
    )
}
