"""The checkpoint that a plan serves: the model's own, one that the engine quantizes as it loads, or one made before."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearpeak.plan import Explained

SIXTEEN_BIT = {"bf16", "fp32"}


@dataclass(frozen=True)
class Weights:
    """What to serve.

    Attributes:
        made: whether the checkpoint must be made before; its folder is then given as ``MODEL_DIR``.
        quantization: how the engine quantizes as it loads, None where the checkpoint says it all.
        notes: what a person must know or do, line by line.
    """

    made: bool
    quantization: str | None
    notes: tuple[str, ...]


def weights_of(plan: "Explained") -> Weights:
    """What the plan's formats ask for, given how the model's checkpoint is stored.

    vLLM and SGLang quantize 16-bit checkpoints to FP8 as they load; every other format is read from a checkpoint.
    """
    from nearpeak.formats import named
    from nearpeak.plan.explain import formats
    from nearpeak.techniques import techniques
    from nearpeak.workload import Experts

    model = plan.setup.model
    parts = ["attention", "ffn"] + ["experts"] * any(isinstance(b.ffn, Experts) for b in model.blocks)
    asked = {part: formats(plan.setup)[part] for part in parts}
    held = {part: named(getattr(model.checkpoint, part)).name for part in parts}
    if asked == held:
        return Weights(False, None, (f"The checkpoint of {model.name} is served as it is stored ({_said(asked)}).",))
    if set(asked.values()) == {"fp8"} and set(held.values()) <= SIXTEEN_BIT:
        return Weights(False, "fp8", ("The engine quantizes the 16-bit checkpoint to FP8 as it loads it.",))
    known = techniques()
    commands = [known[n].command for n in plan.techniques if n in known and known[n].slot == "weights"]
    if commands and commands[0]:
        made = f'nearpeak apply {shlex.quote(model.name)} {commands[0]} --out "$MODEL_DIR"'
        note = f"Needs {_said(asked)} weights. Make them once, from a local folder of {model.name}:"
        return Weights(True, None, (note, f"  {made}"))
    return Weights(
        True,
        None,
        (
            f"Needs a checkpoint of {model.name} with {_said(asked)} weights, in the compressed-tensors or ModelOpt",
            "format; nearpeak does not make it. Set MODEL_DIR to its folder.",
        ),
    )


def _said(formats: dict[str, str]) -> str:
    """Formats in words: one where all parts have the same."""
    if len(set(formats.values())) == 1:
        return next(iter(formats.values()))
    return ", ".join(f"{part} {name}" for part, name in formats.items())
