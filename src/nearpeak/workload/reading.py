"""From a model's id, a file or a config to an ``Architecture``."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nearpeak.errors import UnknownName, UsageError
from nearpeak.workload.architecture import Architecture
from nearpeak.workload.checkpoint import checkpoint_formats, formats_of_suffix, quantization_suffix
from nearpeak.workload.families import FAMILIES
from nearpeak.workload.fields import Fields

_CONFIGS = Path(__file__).parent / "configs"
_WAY_OUT = "Any other model is read from its own config: give the path of config.json, or of the folder that holds it."

_STAGES = re.compile(r"-(instruct|base|chat|it|\d{4})$", re.IGNORECASE)
"""Endings that say how a model was trained, or when; the shapes are those of the model without them."""


@cache
def bundled() -> tuple[str, ...]:
    """The ids of the models whose configs come with nearpeak."""
    names = (entry.name for entry in _CONFIGS.iterdir())
    return tuple(sorted(n.removesuffix(".json").replace("--", "/", 1) for n in names if n.endswith(".json")))


def from_config(config: Mapping[str, Any], name: str = "config") -> Architecture:
    """The architecture that a HF ``config.json`` describes.

    Raises:
        UsageError: an unknown ``model_type``; a field that is missing, contradicts another, or that the family's reader
            cannot place; a quantization that nearpeak does not know.
    """
    if not isinstance(config, Mapping):
        raise UsageError(f"model {name!r}: a config is an object, not {type(config).__name__}")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise _unknown_family(family, config, name)
    fields = Fields(config, family, name)
    architecture = FAMILIES[family](fields)
    fields.ignore("model_type", "quantization_config")
    fields.finish()
    return replace(architecture, checkpoint=checkpoint_formats(config, architecture))


def _unknown_family(family: object, config: Mapping[str, Any], name: str) -> UsageError:
    """Says what the family is called, what of its config would have to be placed, and what is supported."""
    fields = Fields(config, str(family), name)
    fields.ignore("model_type", "quantization_config")
    known = sorted(FAMILIES)
    close = difflib.get_close_matches(str(family), known, n=3, cutoff=0.6)
    near = f" (nearest: {', '.join(close)})" if close else ""
    return UsageError(
        f"model {name!r}: model_type {family!r} is not supported{near}, so nothing says what to make of "
        f"{', '.join(fields.unread()) or 'an empty config'}. Supported: {', '.join(known)}."
    )


def resolve(name: str) -> tuple[str, str]:
    """The bundled id that has the shapes of the model called ``name``, and how ``name`` says it is quantized.

    In this order, and regardless of case:

    1. a bundled id, or the part of one after the slash where only one has it: the config says how it is quantized;
    2. a name of the same maker that differs in "Meta-" or in endings that say how or when a model was trained
       (-Instruct, -Base, -0528): meta-llama/Llama-3.1-8B-Instruct is meta-llama/Meta-Llama-3.1-8B;
    3. the same of whatever maker after leaving off a known quantization (``checkpoint.SUFFIXES``):
       nvidia/Qwen3-32B-NVFP4 is Qwen/Qwen3-32B.

    A name that says no quantization never means a bundled model that does.

    Returns:
        The id, and the ending that was left off (empty if none).

    Raises:
        UnknownName: no bundled model is meant.
    """
    if exact := _names().get(name.lower()):
        return exact, ""
    suffix = quantization_suffix(name)
    maker, _, stem = name[: len(name) - len(suffix)].rpartition("/")
    for model in _same_shapes().get(_plain(stem), ()):
        same_maker = maker.lower() in ("", model.split("/")[0].lower())
        if suffix or (same_maker and quantization_suffix(model) in ("", "-BF16")):
            return model, suffix
    raise UnknownName("model", name, bundled(), _WAY_OUT)


@cache
def _names() -> Mapping[str, str]:
    """Bundled ids by themselves, and by what stands after the slash where that is unique; in lower case."""
    bare: dict[str, list[str]] = {}
    for model in bundled():
        bare.setdefault(model.split("/")[1].lower(), []).append(model)
    return {m.lower(): m for m in bundled()} | {b: found[0] for b, found in bare.items() if len(found) == 1}


@cache
def _same_shapes() -> Mapping[str, tuple[str, ...]]:
    """Bundled ids by their plain name: unquantized ones first, then the shortest."""
    found: dict[str, list[str]] = {}
    for model in sorted(bundled(), key=lambda m: (quantization_suffix(m) not in ("", "-BF16"), len(m))):
        found.setdefault(_plain(model[: len(model) - len(quantization_suffix(model))]), []).append(model)
    return {name: tuple(models) for name, models in found.items()}


def _plain(name: str) -> str:
    """A model's name without its maker and without what says how or when it was trained."""
    name = name.split("/")[-1].lower().removeprefix("meta-")
    while (shorter := _STAGES.sub("", name)) != name:
        name = shorter
    return name


def read(source: str | Path) -> Architecture:
    """The architecture of a model: a bundled id (see ``resolve``), a folder that holds ``config.json``, or a JSON file.

    Beside a ``config.json`` without ``quantization_config``, an ``hf_quant_config.json`` says how it is quantized.

    Raises:
        UnknownName: neither a file nor a model that ``resolve`` knows.
        UsageError: see ``from_config``; or a file that is no JSON.
    """
    path = Path(source)
    if path.is_dir():
        return _from_file(path / "config.json", path.resolve().name)
    if path.is_file():
        return _from_file(path, path.stem if path.stem != "config" else path.resolve().parent.name)
    if path.suffix == ".json":
        raise UsageError(f"there is no file {str(source)!r}. {_WAY_OUT}")
    name = str(source)
    model, suffix = resolve(name)
    config = json.loads((_CONFIGS / (model.replace("/", "--") + ".json")).read_text(encoding="utf-8"))
    architecture = from_config(config, model)
    if not suffix and architecture.checkpoint.method is None:
        suffix = quantization_suffix(model)  # some bundled configs leave the quantization to another file
    if suffix:
        named = replace(architecture, name=name)
        return replace(named, checkpoint=formats_of_suffix(suffix, named))
    return architecture if name.lower() in _names() else replace(architecture, name=name)


def _from_file(path: Path, name: str) -> Architecture:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no {path.name} in {str(path.parent)!r}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{str(path)!r} is no JSON: {error}") from None
    beside = path.parent / "hf_quant_config.json"
    if isinstance(config, dict) and not config.get("quantization_config") and beside.is_file():
        config["quantization_config"] = json.loads(beside.read_text(encoding="utf-8"))
    return from_config(config, name)
