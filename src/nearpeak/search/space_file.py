"""A space as a person writes it: a TOML or JSON file, or parameters on the command line.

    constraints = ["tile % unroll == 0"]

    [parameters]
    tile = [16, 32, 64, 128]                                  # numbers: ordinal; words: categorical
    unroll = { kind = "integer", low = 1, high = 8 }
    rate = { kind = "float", low = 1e-4, high = 0.1, log = true }
    solver = { kind = "categorical", values = ["sgd", "adam"] }
    momentum = { kind = "float", low = 0.0, high = 0.99, when = "solver == 'sgd'" }
    order = { kind = "permutation", items = 4 }
    mixture = { kind = "simplex", parts = 3 }

    [default]                                                 # what is used today: tried first, compared with
    tile = 32

    [run]                                                     # what is tuned; options of the command line go before it
    build = "g++ -O2 -DTILE={tile} gemm.cpp -o {scratch}/gemm"
    command = "{scratch}/gemm"
    value = '([0-9.]+) s'

Commands of a file run in its folder.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.parameters import Categorical, Float, Integer, Ordinal, Parameter, Permutation, Simplex
from nearpeak.search.space import Space

_NUMBER: Final[tuple[type, ...]] = (int, float)
_KEYS: Final[dict[str, tuple[Callable[..., Parameter], dict[str, tuple[type, ...]]]]] = {
    "integer": (Integer, {"low": (int,), "high": (int,), "log": (bool,)}),
    "float": (Float, {"low": _NUMBER, "high": _NUMBER, "log": (bool,)}),
    "ordinal": (Ordinal, {"values": (list,)}),
    "categorical": (Categorical, {"values": (list,)}),
    "permutation": (Permutation, {"items": (int,)}),
    "simplex": (Simplex, {"parts": (int,)}),
}
"""Kinds: what makes one, and its keys with the types of their values."""
_OPTIONAL: Final = ("log", "when")
_RUN: Final[dict[str, type]] = {"command": str, "build": str, "function": str, "value": str, "maximize": bool,
                                "environment": dict}  # fmt: skip
_WRITTEN: Final = {int: "a whole number", float: "a number", bool: "true or false", list: "a list", str: "a text",
                   dict: "a table"}  # fmt: skip


@dataclass(frozen=True)
class SpaceFile:
    """What a file says.

    Attributes:
        space: of the configurations. default: today's configuration, if it names one. run: of its section of that name.
        folder: that the file is in; None for what was written on the command line.
    """

    space: Space
    default: Mapping[str, Any] | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def read_space(path: Path | str) -> SpaceFile:
    """Read a TOML or JSON file.

    Raises:
        UsageError: there is no such file, it is neither, or something in it makes no sense; it names the key.
        UnknownName: a key or kind that there is none of.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{str(path)!r} is no file")
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageError(f"{str(path)!r} is no {kind}: {error}") from None
    with _naming(str(path)):
        return _space_file(_typed("it", given, (dict,)), path.parent)


def inline_space(parameters: Sequence[str], constraints: Sequence[str], default: str | None) -> SpaceFile:
    """A space of texts such as ``tile=16,32,64``, ``unroll=1..8`` and ``rate=1e-4..0.1``.

    Whole ends make an integer, others a float; ``..log`` after the range makes it logarithmic. ``default`` is
    ``tile=32 unroll=4``.

    Raises:
        UsageError: a text is not of this form.
    """
    found: dict[str, Any] = {}
    for text in parameters:
        name, equals, said = (part.strip() for part in text.partition("="))
        if not equals or not said or not name.isidentifier() or name in found:
            why = "is there twice" if name in found else "is not NAME=VALUES"
            raise UsageError(f"parameter {text!r} {why}: write e.g. tile=16,32,64, unroll=1..8 or rate=1e-4..0.1..log")
        found[name] = _inline(said)
    file: dict[str, Any] = {"parameters": found, "constraints": list(constraints)}
    if default is not None:
        pairs = [item.partition("=") for item in default.split()]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise UsageError(f"default {default!r}: {wrong[0]!r} is not NAME=VALUE; write e.g. 'tile=32 unroll=4'")
        file["default"] = {name: _scalar(value) for name, _, value in pairs}
    return _space_file(file, None)


def _inline(said: str) -> Any:  # noqa: ANN401 (a list of values or a table)
    ends = said.split("..")
    if len(ends) in (2, 3) and (len(ends) == 2 or ends[2] == "log"):
        low, high = _scalar(ends[0]), _scalar(ends[1])
        if not any(isinstance(end, str | bool) for end in (low, high)):
            kind = "integer" if isinstance(low, int) and isinstance(high, int) else "float"
            return {"kind": kind, "low": low, "high": high, "log": len(ends) == 3}
    return [_scalar(value.strip()) for value in said.split(",")]


def _scalar(text: str) -> Any:  # noqa: ANN401 (a number, a boolean or a word)
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _space_file(given: Mapping[str, Any], folder: Path | None) -> SpaceFile:
    _known("key", given, ("parameters", "constraints", "default", "run"))
    sections = _typed("parameters", given.get("parameters", {}), (dict,))
    if not sections:
        raise UsageError("parameters: there are none; write e.g. [parameters] and tile = [16, 32, 64]")
    parameters, conditions = {}, {}
    for name, said in sections.items():
        with _naming(f"parameters.{name}"):
            if not name.isidentifier():
                raise UsageError("a name is letters, digits and _, and does not begin with a digit")
            parameters[name] = _parameter(said)
            if isinstance(said, dict) and "when" in said:
                conditions[name] = _typed("when", said["when"], (str,))
    constraints = _typed("constraints", given.get("constraints", []), (list,))
    for i, text in enumerate(constraints):
        _typed(f"constraints[{i}]", text, (str,))
    space = Space(parameters, tuple(constraints), conditions)
    default = given.get("default")
    if default is not None:
        with _naming("default"):
            space.rows([_typed("it", default, (dict,))])
    return SpaceFile(space, default, _run(_typed("run", given.get("run", {}), (dict,))), folder)


def _parameter(said: Any) -> Parameter:  # noqa: ANN401 (what a file may hold)
    if isinstance(said, list):
        numbers = all(isinstance(v, _NUMBER) and not isinstance(v, bool) for v in said)
        said = {"kind": "ordinal" if numbers else "categorical", "values": said}
    kind = _typed("it", said, (dict,)).get("kind")
    if not isinstance(kind, str):
        raise UsageError(f"kind is missing; there are {', '.join(_KEYS)}")
    if kind not in _KEYS:
        raise UnknownName("kind", kind, _KEYS)
    make, keys = _KEYS[kind]
    _known("key", said, ("kind", "when", *keys))
    if missing := [key for key in keys if key not in said and key not in _OPTIONAL]:
        raise UsageError(f"{missing[0]} is missing; a parameter of kind {kind} needs it")
    given = {key: _typed(key, said[key], types) for key, types in keys.items() if key in said}
    for value in (values := given.get("values", [])):
        if isinstance(value, list | dict):
            raise UsageError(f"values[{values.index(value)}] is {value!r}; a value is a number, a text or a boolean")
    return make(*(given.pop("values"),) if "values" in given else (), **given)


def _run(given: Mapping[str, Any]) -> Mapping[str, Any]:
    with _naming("run"):
        _known("key", given, _RUN)
        for key, value in given.items():
            _typed(key, value, (_RUN[key],))
        for name, text in given.get("environment", {}).items():
            _typed(f"environment.{name}", text, (str,))
    return given


def _typed(key: str, value: Any, types: tuple[type, ...]) -> Any:  # noqa: ANN401 (what a file may hold)
    """A value of one of some types; a boolean is no number.

    Raises:
        UsageError: it is of another.
    """
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UsageError(f"{key} is {value!r}; it must be {_WRITTEN[types[-1]]}")
    return value


def _known(kind: str, given: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            raise UnknownName(kind, key, known)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Errors inside begin with where they are."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
