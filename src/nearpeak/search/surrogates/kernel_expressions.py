"""Kernels as expressions: sums of products of base kernels, written ``per(x0) * se(x1) + lin(x2)``.

A base kernel looks at one input or, written ``se(x)``, at all of them with a length scale each. Sums and products of
kernels are kernels, so that structure can be written down: a trend plus a cycle, effects of single inputs that add up.
Each product has a variance of its own. All hyperparameters are fitted together by L-BFGS on exact gradients of the log
marginal likelihood with weak priors; the likelihood of periods has many maxima, so that several starts are compared.

Duvenaud, Lloyd, Grosse, Tenenbaum, Ghahramani: Structure Discovery in Nonparametric Regression through Compositional
Kernel Search, ICML 2013.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Final

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import GP, JITTER, condition, log_likelihood, most_probable, standardised
from nearpeak.search.surrogates.kernels import SHAPES

TERMS: Final = 6
"""Products in a sum, at most (as many as there are inputs, if those are more)."""
FACTORS: Final = 3
"""Base kernels in a product, at most."""

Parts = tuple[Floats, Callable[[], list[Floats]]]
"""A matrix, and what makes its derivative by each hyperparameter: predictions need none."""


@dataclass(frozen=True, order=True)
class Base:
    """A base kernel: a name of ``BASES`` and the input that it looks at; None: all of them."""

    kind: str
    at: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}(x{'' if self.at is None else self.at})"


Term = tuple[Base, ...]
Expression = tuple[Term, ...]


def write(expression: Expression) -> str:
    """An expression as text, sorted, so that equal ones read alike."""
    return " + ".join(sorted(" * ".join(str(b) for b in sorted(t, key=str)) for t in expression))


def parse(text: str, inputs: int) -> Expression:
    """The sum of products that a text says; brackets are multiplied out.

    Raises:
        UsageError: it is no such expression, names an unknown kernel or input, or is too large.
    """
    try:
        terms = tuple(_expanded(ast.parse(text.strip(), mode="eval").body, inputs))
    except SyntaxError:
        raise UsageError(f"{text!r} is no kernel; write one as per(x0) * se(x1) + lin(x2)") from None
    if len(terms) > max(TERMS, inputs) or max(len(t) for t in terms) > FACTORS:
        raise UsageError(f"{text!r} has more than {max(TERMS, inputs)} products or more than {FACTORS} factors in one")
    return terms


def _expanded(node: ast.expr, inputs: int) -> Iterator[Term]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from _expanded(left, inputs)
            yield from _expanded(right, inputs)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            for a in _expanded(left, inputs):
                for b in _expanded(right, inputs):
                    yield tuple(sorted((*a, *b), key=str))
        case ast.Call(func=ast.Name(id=kind), args=[ast.Name(id=name)], keywords=[]) if kind in BASES:
            number = name[1:]
            if name == "x" and BASES[kind].wide:
                yield (Base(kind),)
            elif name.startswith("x") and number.isdecimal() and int(number) < inputs:
                yield (Base(kind, int(number)),)
            else:
                raise UsageError(f"{kind}({name}): inputs are x0 to x{inputs - 1}, and x where a kernel takes all")
        case _:
            raise UsageError(
                f"{ast.unparse(node)!r} is no kernel; join {', '.join(BASES)} of an input, as se(x0), by + and *"
            )


# Base kernels. Differences ``[n, m, d]`` are of the inputs that the kernel looks at; a, b the inputs themselves.


@dataclass(frozen=True)
class _Kind:
    """How a base kernel is computed.

    Attributes:
        function: of (differences, a, b, theta) the matrix and its derivatives. modes, spreads: of the normal prior of
            theta beyond the length scales. wide: it can look at all inputs. lengths: it has a length scale an input.
    """

    function: Callable[[Floats, Floats, Floats, Floats], Parts]
    modes: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    wide: bool = True
    lengths: bool = True


def _radial(shape: str) -> Callable[[Floats, Floats, Floats, Floats], Parts]:
    def function(apart: Floats, a: Floats, b: Floats, theta: Floats) -> Parts:
        scaled = (apart / np.exp(theta)) ** 2
        value, slope = SHAPES[shape](scaled.sum(-1))
        return value, lambda: [-2 * slope * scaled[..., j] for j in range(len(theta))]

    return function


def _rational(apart: Floats, a: Floats, b: Floats, theta: Floats) -> Parts:
    scaled, alpha = (apart / np.exp(theta[:-1])) ** 2, np.exp(theta[-1])
    r2 = scaled.sum(-1)
    bracket = 1 + r2 / (2 * alpha)
    value = bracket**-alpha

    def slopes() -> list[Floats]:
        by_alpha = value * (-alpha * np.log(bracket) + r2 / (2 * bracket))
        return [*(value / bracket * scaled[..., j] for j in range(len(theta) - 1)), by_alpha]

    return value, slopes


def _periodic(apart: Floats, a: Floats, b: Floats, theta: Floats) -> Parts:
    length, angle = np.exp(theta[0]), np.pi * apart[..., 0] / np.exp(theta[1])
    inner = 2 * np.sin(angle) ** 2 / length**2
    value = np.exp(-inner)
    return value, lambda: [2 * value * inner, value * 2 / length**2 * np.sin(2 * angle) * angle]


def _linear(apart: Floats, a: Floats, b: Floats, theta: Floats) -> Parts:
    left, right = a - theta[0], b - theta[0]
    return left @ right.T, lambda: [-(left + right.T)]


BASES: Final = {
    "se": _Kind(_radial("rbf")),
    "m32": _Kind(_radial("matern32")),
    "m52": _Kind(_radial("matern52")),
    "rq": _Kind(_rational, (0.0,), (1.0,)),
    "per": _Kind(_periodic, (float(np.log(0.25)),), (0.7,), wide=False),
    "lin": _Kind(_linear, (0.5,), (0.7,), wide=False, lengths=False),
}
"""Squared exponential, Matern, rational quadratic, periodic, linear."""


@cache
def _prior(base: Base, inputs: int) -> tuple[Floats, Floats]:
    """Modes and standard deviations of the hyperparameters of a base kernel."""
    kind, wide = BASES[base.kind], inputs if base.at is None else 1
    lengths = wide if kind.lengths else 0
    location = np.log(0.5) + 0.5 * np.log(wide) + (0.7 if wide > 1 else 0.0)
    if base.kind == "per":
        location = 0.0
    return np.append(np.full(lengths, location), kind.modes), np.append(np.full(lengths, 1.0), kind.spreads)


@dataclass(frozen=True)
class Layout:
    """Where each hyperparameter of an expression is in one vector: for each product its log variance and those of its
    factors, the log variance of the noise last.

    Attributes:
        expression, inputs: what it is of.
    """

    expression: Expression
    inputs: int

    def count(self, base: Base) -> int:
        """Hyperparameters of a base kernel."""
        return len(_prior(base, self.inputs)[0])

    @cached_property
    def prior(self) -> tuple[Floats, Floats]:
        """Modes and standard deviations, ``[p]`` each."""
        modes, spreads = [], []
        for term in self.expression:
            modes.append([-np.log(len(self.expression))])
            spreads.append([1.5])
            for base in term:
                mode, spread = _prior(base, self.inputs)
                modes.append(list(mode))
                spreads.append(list(spread))
        return np.concatenate([*modes, [-5.0]]), np.concatenate([*spreads, [1.5]])

    def terms(self, theta: Floats, a: Floats, b: Floats) -> list[tuple[float, list[Parts]]]:
        """Of each product its variance and its factors at features ``a [n, f]``, ``b [m, f]``."""
        apart = a[:, None, :] - b[None, :, :]
        found, start = [], 0
        for term in self.expression:
            scale, parts = float(np.exp(theta[start])), []
            start += 1
            for base in term:
                count = self.count(base)
                columns = slice(None) if base.at is None else slice(base.at, base.at + 1)
                given = theta[start : start + count]
                parts.append(BASES[base.kind].function(apart[..., columns], a[:, columns], b[:, columns], given))
                start += count
            found.append((scale, parts))
        return found

    def matrix(self, theta: Floats, x: Floats) -> tuple[Floats, list[Floats]]:
        """Covariance ``[n, n]`` of features and its derivatives by ``theta[:-1]``."""
        total, slopes = np.zeros((len(x), len(x))), []
        for scale, parts in self.terms(theta, x, x):
            product = _product(scale, [value for value, _ in parts])
            total += product
            slopes.append(product)
            for i, (_, derivatives) in enumerate(parts):
                others = _product(scale, [value for j, (value, _) in enumerate(parts) if j != i])
                slopes += [others * d for d in derivatives()]
        return total, slopes

    def log_posterior(self, x: Floats, y: Floats, theta: Floats) -> tuple[float, Floats]:
        """Log marginal likelihood of standardised ``y [n]`` plus log prior, and its gradient."""
        covariance, slopes = self.matrix(theta, x)
        noise = np.exp(theta[-1])
        covariance[np.diag_indices(len(y))] += noise + JITTER
        value, outer = log_likelihood(covariance, y)
        if outer is None:
            return value, np.zeros(len(theta))
        mode, spread = self.prior
        off = (theta - mode) / spread
        gradient = 0.5 * np.array([*((outer * d).sum() for d in slopes), noise * np.trace(outer)])
        return float(value - 0.5 * off @ off), gradient - off / spread


def _product(scale: float, factors: list[Floats]) -> Floats:
    found: Floats = np.asarray(scale)
    for factor in factors:
        found = found * factor
    return found


@dataclass(frozen=True)
class Composite:
    """A kernel that an expression says, at given hyperparameters."""

    layout: Layout
    theta: Floats = field(repr=False)

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]``."""
        terms = self.layout.terms(self.theta, a, b)
        return np.asarray(sum(_product(scale, [value for value, _ in parts]) for scale, parts in terms))

    def diagonal(self, a: Floats) -> Floats:
        """Variance at each, ``[n]``: linear kernels aside, base kernels are 1 there."""
        found, start = np.zeros(len(a)), 0
        for term in self.layout.expression:
            product = np.full(len(a), np.exp(self.theta[start]))
            start += 1
            for base in term:
                if base.kind == "lin":
                    product *= (a[:, base.at] - self.theta[start]) ** 2
                start += self.layout.count(base)
            found += product
        return found


@dataclass(frozen=True)
class Fitted:
    """An expression at its most probable hyperparameters.

    Attributes:
        expression: the kernel. theta: its hyperparameters. bic: ``p log n - 2 log likelihood``; smaller is better.
    """

    expression: Expression
    theta: Floats = field(repr=False)
    bic: float

    def gp(self, x: Floats, y: Floats) -> GP:
        """The Gaussian process given values ``y [n]`` at features ``x [n, f]``."""
        layout = Layout(self.expression, x.shape[1])
        return condition(Composite(layout, self.theta), x, y, float(np.exp(self.theta[-1])))


def fit(
    expression: Expression, x: Floats, y: Floats, rng: np.random.Generator, start: Floats | None = None,
    iterations: int = 30, tries: int = 16,
) -> Fitted:  # fmt: skip
    """The most probable hyperparameters of an expression for values ``y [n]`` at features ``x [n, f]``.

    Args:
        start: where to begin; None: at the better of two of ``tries`` draws from the prior and at its mode.
    """
    layout = Layout(expression, x.shape[1])
    targets, _, _ = standardised(y)
    mode, spread = layout.prior
    low, high = mode - 4 * spread, mode + 4 * spread
    log_posterior = partial(layout.log_posterior, x, targets)
    starts = [mode if start is None else start]
    if start is None and any(base.kind == "per" for term in expression for base in term):
        drawn = mode + spread * rng.standard_normal((tries, len(mode)))
        starts += sorted(drawn, key=lambda theta: -log_posterior(theta)[0])[:2]
    theta, value = most_probable(log_posterior, starts, list(zip(low, high, strict=True)), maxiter=iterations)
    evidence = value + 0.5 * (((theta - mode) / spread) ** 2).sum()
    return Fitted(expression, theta, float(len(theta) * np.log(len(y)) - 2 * evidence))
