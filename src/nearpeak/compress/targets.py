"""Which tensors of a checkpoint are weights of linear layers to quantize, and which are kept, with the reason.

Decided by names and shapes alone, before any weight is read. What is neither known to be a linear layer nor known to be
kept is an error and not a guess; whoever asks can keep it by naming it in ``ignore``.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearpeak.compress.quantizers import GROUPS, Scheme
from nearpeak.compress.safetensors_file import Tensor
from nearpeak.errors import UsageError

PROJECTIONS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj"),
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),  # multi-head latent attention
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),  # Falcon, GPT-NeoX, BLOOM
        *("W_pack", "wqkv", "wo"),  # Baichuan, InternLM2
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2"),
        *("w1", "w2", "w3"),  # Mixtral's experts, InternLM2
        *("input_linear", "output_linear"),  # Granite's shared experts
        *("in_proj", "in_proj_qkv", "in_proj_z", "in_proj_qkvz"),  # linear attention and state-space mixers
    }
)
"""Last names of modules that are ``nn.Linear`` with weight ``[out, in]`` in the decoder layers of known families."""

_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
)
"""Layers that engines fuse into one: they share a scheme, so all of them are quantized or none."""

_KEPT = (
    (r"(^|\.)(visual|vision_\w+|audio_\w+|multi_modal_projector|mm_projector|embed_vision|embed_audio)\.", "tower"),
    (r"(^|\.)mtp\.", "multi-token prediction"),
    (r"(^|\.)\w*(embed|embeddings|wte|wpe)(_\w+)?$", "embedding"),
    (r"(^|\.)(lm_head|embed_out)$", "output head"),
    (r"(^|\.)(gate|router|shared_expert_gate)(\.\w+)?$", "router"),
    (r"\w*norm\w*$", "norm"),
    (r"(^|\.)\w*conv\w*$", "convolution"),
    (r"\.indexer\.", "sparse-attention indexer"),
    (r"\.(in_proj_(a|b|ba)|(f_a|f_b|g_a|g_b|b)_proj)$", "small gate of linear attention"),
)
"""What is kept, by a regular expression over the module's name (searched), and why."""

_QUANTIZED = re.compile(r"\.(weight_scale(_inv)?|weight_packed|qweight|qzeros|\w+_scales|\w+_blocks|absmax)$")


@dataclass(frozen=True)
class Selection:
    """``linears``: names of modules whose ``.weight`` is quantized; ``kept``: matrices' modules -> reason."""

    linears: tuple[str, ...]
    kept: Mapping[str, str]


def module_of(parameter: str) -> str:
    """The module that owns a parameter: ``a.b`` of ``a.b.weight``."""
    return parameter.rpartition(".")[0]


def select(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], scheme: Scheme, ignore: Sequence[str] = ()
) -> Selection:
    """Decide for every tensor of a checkpoint whether it is quantized.

    Args:
        tensors: headers of the whole checkpoint by name.
        config: its ``config.json``.
        scheme: bits and group.
        ignore: modules to keep besides the known ones: full names, or ``re:`` and an expression matched from the start.

    Raises:
        UsageError: the checkpoint is quantized already; a layer is of no known kind; experts are fused into one tensor;
            the group does not divide a layer's inputs; a fused layer would be quantized in part; ``ignore`` names
            nothing; nothing is left to quantize.
    """
    _refuse_quantized(tensors, config)
    layers = _text_config(config).get("num_hidden_layers")
    modules = {module_of(name) for name in tensors} | {"lm_head"}  # a tied head has no tensor of its own
    ignored = _ignored(modules, ignore)
    linears: list[str] = []
    kept: dict[str, str] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        module = module_of(name)
        if module in ignored:
            kept[module] = "ignored on request"
        elif len(tensor.shape) < 2:
            continue  # norms and biases: no matrices
        elif reason := _kept_reason(module, layers):
            kept[module] = reason
        elif not name.endswith(".weight") and ".experts" not in name:
            kept[name] = "not the weight of a linear layer"
        elif name.endswith(".weight") and module.rpartition(".")[2] in PROJECTIONS and len(tensor.shape) == 2:
            linears.append(module)
        else:
            unknown.append(name)
    if unknown:
        raise UsageError(_about_unknown(unknown, tensors))
    if not linears:
        raise UsageError(f"nothing to quantize: none of {len(tensors)} tensors is a linear layer that is not ignored")
    _check_linears(linears, tensors, scheme)
    _check_fused(linears, kept)
    return Selection(tuple(sorted(linears)), dict(sorted(kept.items())))


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _refuse_quantized(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    for part in (config, _text_config(config)):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method", "unknown") if isinstance(part[key], Mapping) else part[key]
                raise UsageError(f"the checkpoint is quantized already ({method}); start from its 16-bit original")
    for name, tensor in tensors.items():
        if _QUANTIZED.search(name) or tensor.dtype.startswith(("F8", "F4", "F6")):
            raise UsageError(
                f"the checkpoint is quantized already ({name} is {tensor.dtype}); start from its 16-bit original"
            )


def _ignored(modules: set[str], ignore: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in ignore:
        if pattern.startswith("re:"):
            try:
                matches = {module for module in modules if re.match(pattern[3:], module)}
            except re.error as error:
                raise UsageError(f"ignore={pattern!r} is not a regular expression: {error}") from error
        else:
            matches = modules & {pattern}
        if not matches:
            raise UsageError(f"ignore={pattern!r} matches no module, e.g. {min(modules)}; use a full name or re:...")
        found |= matches
    return found


def _kept_reason(module: str, layers: int | None) -> str | None:
    number = re.search(r"(?:^|\.)layers\.(\d+)\.", module)
    for expression, reason in _KEPT:
        if re.search(expression, module):
            return reason
    if number and layers is not None and int(number[1]) >= layers:  # DeepSeek-V3 stores it as one layer more
        return "multi-token prediction"
    return None


def _about_unknown(unknown: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    examples = ", ".join(f"{name} {list(tensors[name].shape)}" for name in unknown[:3])
    if all(".experts." in name for name in unknown):
        share = sum(tensors[name].bytes for name in unknown) / sum(t.bytes for t in tensors.values())
        return (
            f"experts are stored fused into one tensor ({examples}, {len(unknown)} in all, {share:.0%} of the "
            "checkpoint), which is not supported; ignore=['re:.*experts'] keeps them as they are"
        )
    kinds = "|".join(sorted({module_of(name).rpartition(".")[2] for name in unknown}))
    return (
        f"{len(unknown)} tensors are no layer of a known kind ({examples}); to keep them as they are: "
        rf"ignore=['re:.*\.({kinds})$']"
    )


def _check_linears(linears: Sequence[str], tensors: Mapping[str, Tensor], scheme: Scheme) -> None:
    for module in linears:
        tensor = tensors[f"{module}.weight"]
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise UsageError(f"{module} is stored as {tensor.dtype}; F32, F16 and BF16 can be quantized")
        inputs = tensor.shape[1]
        if not scheme.divides(inputs):
            valid = ", ".join(str(g) for g in GROUPS if Scheme(scheme.bits, g).divides(inputs))
            raise UsageError(
                f"group={scheme.group} does not divide the {inputs} inputs of {module}; groups that do: {valid}. "
                f"Or keep the layer: ignore=['re:.*{module.rpartition('.')[2]}']"
            )


def _check_fused(linears: Sequence[str], kept: Mapping[str, str]) -> None:
    """Engines run fused layers, and all experts of a block, with one scheme: they are quantized together or not."""
    members: dict[str, dict[str, bool]] = defaultdict(dict)
    for module, quantized in [(m, True) for m in linears] + [(m, False) for m in kept]:
        parent, _, last = module.rpartition(".")
        for fused in _FUSED:
            if last in fused:
                members[f"{parent}.({'|'.join(fused)})"][module] = quantized
        if expert := re.match(r"(.*\.experts)\.\d+\.", module):
            members[expert[1]][module] = quantized
    for layer, parts in members.items():
        if len(set(parts.values())) > 1:
            left = ", ".join(sorted(m for m, quantized in parts.items() if not quantized)[:3])
            raise UsageError(f"engines run {layer} as one layer, but only {left} would be kept; ignore all or none")
