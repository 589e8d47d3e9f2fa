"""In which number formats a checkpoint stores its parts: from a config's ``quantization_config``, or from a model's id.

What is left unquantized is given as patterns of module names. A part (attention, feed-forward, experts, head) counts as
left where the patterns match it in most of a sample of layers.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import translate
from typing import Any

from nearpeak.errors import UsageError
from nearpeak.workload.architecture import Architecture, Checkpoint, Experts

_PARTS: Mapping[str, tuple[str, ...]] = {
    "attention": ("self_attn.o_proj", "linear_attn.out_proj", "attn.wo_b", "attn.c_proj", "mixer.o_proj"),
    "ffn": (
        "mlp.down_proj",
        "mlp.shared_experts.down_proj",
        "mlp.shared_expert.down_proj",
        "ffn.shared_experts.w2",
        "feed_forward.down_proj",
        "feed_forward.shared_expert.down_proj",
        "block_sparse_moe.shared_experts.down_proj",
        "mixer.shared_experts.down_proj",
        "mixer.down_proj",
    ),
    "experts": (
        "mlp.experts.0.down_proj",
        "ffn.experts.0.w2",
        "block_sparse_moe.experts.0.w2",
        "feed_forward.experts.0.down_proj",
        "mixer.experts.0.down_proj",
    ),
}
"""One matrix that stands for each part, under the names that the families' checkpoints use."""

_HEADS = ("lm_head", "head")
_ROOTS = ("model.layers", "model.language_model.layers", "language_model.model.layers", "layers", "backbone.layers")
_SAMPLE = 7
"""Layers that are looked at."""

Matcher = Callable[[str], bool]


def checkpoint_formats(config: Mapping[str, Any], model: Architecture) -> Checkpoint:
    """The formats of the checkpoint that a config describes.

    Raises:
        UsageError: a method or number format that nearpeak does not know, or a shortened ``quantization_config`` (as
            in some bundled configs) of a model whose id does not end in a quantization.
    """
    text = config.get("text_config") or {}
    stored = _unquantized(config, text, model.name)
    quantization = config.get("quantization_config") or text.get("quantization_config")
    if not quantization:
        return Checkpoint(*[stored] * 5)
    q = {**quantization, **quantization.get("quantization", {})}
    method = str(q.get("quant_method") or q.get("quant_algo")).lower()
    kv = _kv_format(q, stored, model.name)
    if method == "mxfp4":  # gpt-oss: its experts alone
        found = Checkpoint(stored, stored, "mxfp4", stored, kv, method)
    elif q.get("moe_quant_algo"):  # experts quantized once more, in a checkpoint whose other matrices are fp8
        rest = _groups({**q, "quantized_layers": None}, method, model.name)[0][1]
        found = Checkpoint(rest, rest, _algorithm(str(q["moe_quant_algo"]), model.name), stored, kv, method)
    elif _shortened(q):
        found = replace(_shortened_formats(q, model), kv=kv, method=method)
    else:
        found = replace(_listed_formats(q, method, stored, model), kv=kv, method=method)
    if config.get("expert_dtype") == "fp4" and not q.get("moe_quant_algo"):
        # DeepSeek-V4 multiplies experts in 4 bits with activations in 8.
        return replace(found, experts="mxfp4_mxfp8")
    return found


def _unquantized(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> str:
    dtype = next((c[k] for c in (config, text) for k in ("torch_dtype", "dtype") if c.get(k)), "bfloat16")
    known = {"bfloat16": "bf16", "float16": "bf16", "float32": "fp32", "auto": "bf16"}
    if dtype not in known:
        raise UsageError(f"model {name!r}: torch_dtype = {dtype!r} is not supported; only {', '.join(known)}")
    return known[dtype]


def _kv_format(q: Mapping[str, Any], stored: str, name: str) -> str:
    scheme = q.get("kv_cache_scheme") or q.get("kv_cache_quant_algo")
    if scheme is None:
        return stored
    if scheme == "FP8" or (isinstance(scheme, Mapping) and scheme.get("num_bits") == 8 and scheme["type"] == "float"):
        return "fp8"
    if scheme == "NVFP4":
        return "nvfp4"
    raise UsageError(f"model {name!r}: a KV cache stored as {scheme!r} is not supported; only FP8 and NVFP4")


def _shortened(q: Mapping[str, Any]) -> bool:
    return any(isinstance(v, str) and v.startswith("(left out") for v in q.values())


def _shortened_formats(q: Mapping[str, Any], model: Architecture) -> Checkpoint:
    """By the id's ending. A list of NVFP4's exceptions as long as the model is deep names each layer's attention."""
    suffix = quantization_suffix(model.name)
    if not suffix:
        raise UsageError(
            f"model {model.name!r}: its quantization_config is shortened ('left out'), and its id does not end in a "
            f"known quantization ({', '.join(SUFFIXES)}) that would say what it leaves out"
        )
    found = formats_of_suffix(suffix, model)
    ignored = str(q.get("ignore") or q.get("exclude_modules") or "")
    entries = int(number.group(1)) if (number := re.match(r"\(left out: (\d+)", ignored)) else 0
    if q.get("quant_algo") == "NVFP4" and entries >= model.layers:
        return replace(found, attention=found.head)
    return found


def _listed_formats(q: Mapping[str, Any], method: str, stored: str, model: Architecture) -> Checkpoint:
    left = _matcher(q.get("ignore") or q.get("exclude_modules") or q.get("modules_to_not_convert") or ())
    groups = [(_matcher(targets), fmt) for targets, fmt in _groups(q, method, model.name)]

    def of(names: Iterable[str]) -> str:
        return next((fmt for matches, fmt in groups if any(map(matches, names))), stored)

    found = {}
    for part, matrices in _PARTS.items():
        layers = range(0, model.layers, -(-model.layers // _SAMPLE))
        names = [[f"{root}.{i}.{m}" for root in _ROOTS for m in matrices] for i in layers]
        skipped = sum(any(map(left, of_layer)) for of_layer in names)
        found[part] = stored if 2 * skipped > len(names) else of(n for of_layer in names for n in of_layer)
    # Only compressed-tensors quantizes a head that its config does not name.
    head = method == "compressed-tensors" and not any(map(left, _HEADS))
    return Checkpoint(**found, head=of(_HEADS) if head else stored)


def _matcher(patterns: Sequence[str]) -> Matcher:
    """Whether a module's name matches: ``re:`` and a regular expression, a glob, or whole components of the name."""
    plain, regexes = set(), []
    for pattern in patterns:
        if pattern == "Linear":
            return lambda name: True
        if pattern.startswith("re:"):
            regexes.append(pattern[3:])
        elif "*" in pattern:
            regexes.extend((translate(pattern), translate(pattern.rstrip(".*") + ".*")))
        else:
            plain.add(pattern)
    endings = {pattern.rpartition(".")[2] for pattern in plain}
    regex = re.compile("|".join(f"(?:{r})" for r in regexes)) if regexes else None

    def matches(name: str) -> bool:
        if regex is not None and regex.match(name):
            return True
        words = name.split(".")
        if endings.isdisjoint(words):
            return False
        return any(".".join(words[i:j]) in plain for i in range(len(words)) for j in range(i + 1, len(words) + 1))

    return matches


def _groups(q: Mapping[str, Any], method: str, name: str) -> list[tuple[Sequence[str], str]]:
    """Which modules are stored in which format."""
    everything = ("Linear",)
    if method in ("fp8", "fbgemm_fp8"):
        return [(everything, "fp8_block" if q.get("weight_block_size") else "fp8")]
    if method in ("awq", "gptq"):
        bits = q.get("bits", q.get("w_bit"))
        if bits not in (4, 8):
            raise UsageError(f"model {name!r}: {method} with {bits!r} bits is not supported; only 4 and 8")
        return [(everything, f"int{bits}_wo")]
    if layers := q.get("quantized_layers"):
        return [((layer,), _algorithm(str(entry["quant_algo"]), name)) for layer, entry in layers.items()]
    if groups := q.get("config_groups"):
        return [(g.get("targets", everything), _scheme(g, name)) for g in groups.values()]
    if q.get("quant_algo"):
        return [(everything, _algorithm(str(q["quant_algo"]), name))]
    raise UsageError(
        f"model {name!r}: quantization method {method!r} is not supported; only fp8, fbgemm_fp8, mxfp4, awq, gptq, "
        "modelopt and compressed-tensors. Remove quantization_config to read the model unquantized."
    )


_ALGORITHMS = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8_block",
    "FP8_BLOCK_SCALES": "fp8_block",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_AWQ": "int4_wo",
    "W8A16": "int8_wo",
    "W8A8_SQ_PER_CHANNEL": "int8",
}


def _algorithm(algorithm: str, name: str) -> str:
    if algorithm not in _ALGORITHMS:
        raise UsageError(f"model {name!r}: quant_algo {algorithm!r} is not supported; only {', '.join(_ALGORITHMS)}")
    return _ALGORITHMS[algorithm]


def _scheme(group: Mapping[str, Any], name: str) -> str:
    """The format of a group of compressed-tensors or ModelOpt: bits and type of weights and of activations."""
    weights, activations = group["weights"], group.get("input_activations")
    bits = 16 if activations is None else activations["num_bits"]
    formats = {
        ("float", 8, 8): "fp8_block" if weights.get("strategy") == "block" else "fp8",
        ("float", 4, 4): "nvfp4",
        ("float", 4, 8): "mxfp4_mxfp8",
        ("float", 4, 16): "mxfp4" if weights.get("group_size") == 32 else None,
        ("int", 8, 8): "int8",
        ("int", 8, 16): "int8_wo",
        ("int", 4, 16): "int4_wo_32" if weights.get("group_size") == 32 else "int4_wo",
    }
    if found := formats.get((weights["type"], weights["num_bits"], bits)):
        return found
    raise UsageError(
        f"model {name!r}: {weights['num_bits']}-bit {weights['type']} weights in groups of {weights.get('group_size')} "
        f"with {bits}-bit activations are in no format that nearpeak knows"
    )


SUFFIXES: Mapping[str, str] = {
    "-FP8-Static-PerTensor": "fp8",
    "-FP8-dynamic": "fp8",
    "-FP8": "fp8",
    "-NVFP4": "nvfp4",
    "-FP4": "nvfp4",
    "-MXFP4": "mxfp4",
    "-AWQ": "int4_wo",
    "-GPTQ-Int4": "int4_wo",
    "-GPTQ-Int8": "int8_wo",
    "-W4A16": "int4_wo",
    "-W8A16": "int8_wo",
    "-W8A8": "int8",
    "-BF16": "bf16",
}
"""Endings of ids that say how a checkpoint is quantized, and the format they stand for."""


def quantization_suffix(name: str) -> str:
    """The ending of a model's id that says how it is quantized, as in ``SUFFIXES``; empty where there is none."""
    return next((s for s in SUFFIXES if name.lower().endswith(s.lower())), "")


def formats_of_suffix(suffix: str, model: Architecture) -> Checkpoint:
    """The formats that an id's ending stands for: all matrices but the head, as publishers of such checkpoints do.

    Two turns are theirs too. "-FP8" means one scale for each block where the maker of Qwen, GLM or DeepSeek publishes
    it, else one scale a tensor or channel. 4-bit float checkpoints of models with experts leave attention as it was,
    and NVIDIA's NVFP4 ones keep the KV cache in fp8 (model cards of nvidia/*-NVFP4).
    """
    fmt = SUFFIXES[suffix]
    if suffix == "-FP8" and model.name.split("/")[0] in ("Qwen", "zai-org", "deepseek-ai", "sgl-project"):
        fmt = "fp8_block"
    routed = any(isinstance(b.ffn, Experts) for b in model.blocks)
    attention = "bf16" if routed and fmt in ("nvfp4", "mxfp4") else fmt
    method = None if fmt == "bf16" else suffix[1:]
    return Checkpoint(attention, fmt, fmt, "bf16", "fp8" if fmt == "nvfp4" else "bf16", method)
