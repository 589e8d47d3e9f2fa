"""Constraints and conditions as text: Python expressions over parameter names, evaluated over whole arrays.

``block_x * block_y <= 1024 and tile % vector == 0``, ``solver == 'sgd'``, ``32 <= x <= 64``, ``mode in (0, 2)``,
``weights[0] < 0.5``. Nothing else of the language: no calls but those of ``FUNCTIONS``, no attributes, no names that
are not parameters.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError

Values = Mapping[str, NDArray[Any]]
"""Values of each parameter by name, ``[n]`` each, or ``[n, k]`` for a permutation or a point of a simplex."""

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "abs": np.abs,
    "min": lambda *of: reduce(np.minimum, of),
    "max": lambda *of: reduce(np.maximum, of),
    "log2": np.log2,
    "sqrt": np.sqrt,
    "ceil": np.ceil,
    "floor": np.floor,
}
_BINARY: Final[dict[type, Callable[..., Any]]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_COMPARE: Final[dict[type, Callable[..., Any]]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.In: lambda a, b: reduce(np.logical_or, (a == one for one in b)),
    ast.NotIn: lambda a, b: ~reduce(np.logical_or, (a == one for one in b)),
}


@dataclass(frozen=True)
class Expression:
    """A parsed expression: its text, and the parameters that it names."""

    text: str
    names: frozenset[str]
    tree: ast.expr = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, known: Mapping[str, Any]) -> "Expression":
        """Read an expression over the parameters that are known.

        Raises:
            UsageError: it is no expression, uses something that expressions have not, or names no parameter.
        """
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise UsageError(f"constraint {text!r} is no expression: {error.msg} at column {error.offset}") from None
        calls = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in calls}
        if unknown := sorted(names - set(known)):
            raise UsageError(f"constraint {text!r} names {', '.join(unknown)}; parameters are {', '.join(known)}")
        _check(tree, text, {name: getattr(parameter, "width", 1) for name, parameter in known.items()})
        return cls(text, frozenset(names), tree)

    def __call__(self, values: Values) -> NDArray[Any]:
        """Its value in every row, ``[n]``.

        Raises:
            UsageError: the values are of types that it cannot be computed for.
        """
        try:
            with np.errstate(all="ignore"):
                return np.asarray(_value(self.tree, values))
        except (TypeError, ValueError) as error:
            raise UsageError(f"constraint {self.text!r} cannot be computed: {error}") from None


def _check(tree: ast.expr, text: str, widths: Mapping[str, int]) -> None:
    allowed = (
        *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp, ast.Compare, ast.Constant),
        *(ast.Name, ast.Load, ast.Tuple, ast.List, ast.Subscript, ast.Call, *_BINARY, *_COMPARE),
    )
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        )
        if called or not isinstance(node, allowed):
            what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise UsageError(
                f"constraint {text!r}: {what!r} is not understood; there are arithmetic, comparisons, and, or, not, "
                f"in, [index] and {', '.join(FUNCTIONS)}"
            )
        if wrong := _misused(node, widths):
            raise UsageError(f"constraint {text!r}: {ast.unparse(node)!r} {wrong}")
    indexed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and widths.get(node.id, 1) > 1 and id(node) not in indexed:
            raise UsageError(f"constraint {text!r}: {node.id} has {widths[node.id]} values: write {node.id}[0]")


def _misused(node: ast.AST, widths: Mapping[str, int]) -> str:
    """What is wrong with a part of an expression; empty where nothing is."""
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int(index))):
            return "" if 0 <= index < widths.get(name, 1) > 1 else f"asks for a value that {name} does not have"
        case ast.Subscript():
            return "is no [index] of a parameter"
        case ast.Call(func=ast.Name(id=name), args=given):
            few = name in ("min", "max")
            return "" if (len(given) >= 2 if few else len(given) == 1) else "has the wrong number of arguments"
        case ast.Compare(ops=ops, comparators=sides):
            for op, side in zip(ops, sides, strict=True):
                literal = isinstance(side, (ast.Tuple, ast.List)) and len(side.elts) > 0
                if isinstance(op, (ast.In, ast.NotIn)) != literal:
                    return "needs values in brackets after in, and only there: x in (1, 2)"
    return ""


def _value(node: ast.expr, values: Values) -> Any:  # noqa: ANN401 (numbers, words or arrays of them)
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values[node.id]
        case ast.Tuple() | ast.List():
            return [_value(one, values) for one in node.elts]
        case ast.Subscript():
            return values[ast.unparse(node.value)][..., _value(node.slice, values)]
        case ast.UnaryOp():
            inner = _value(node.operand, values)
            if isinstance(node.op, ast.Not):
                return np.logical_not(inner)
            return np.negative(inner) if isinstance(node.op, ast.USub) else inner
        case ast.BinOp():
            return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.BoolOp():
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return reduce(join, (_value(one, values) for one in node.values))
        case ast.Compare():
            sides = [_value(one, values) for one in (node.left, *node.comparators)]
            pairs = zip(node.ops, sides, sides[1:], strict=False)
            return reduce(np.logical_and, (_COMPARE[type(op)](a, b) for op, a, b in pairs))
        case ast.Call():
            assert isinstance(node.func, ast.Name)
            return FUNCTIONS[node.func.id](*(_value(one, values) for one in node.args))
    raise AssertionError(f"{type(node).__name__} passed the check")
