"""How far a model's predictions move in each number format: KL divergence to the model itself, measured (torch).

Every matrix of the layers is stored and multiplied as the format's kernels do it: codes and scales as engines load
them, activations rounded for each token as they are met, products summed in 32 bits. Tables and the head stay as they
are, as in published checkpoints (Kurtic et al., ACL 2025, arXiv 2411.02355, section 3).

- ``w4a16-int``: weights nearest-rounded to 4 bits in groups of 128 inputs, activations untouched.
- ``w8a8-int``: weights to 8 bits for each output, activations to 8 bits for each token.
- ``w8a8-fp``: both to FP8 (E4M3), with a scale for each output and each token.

``KL(p || q) = sum_v p(v) log(p(v) / q(v))`` of each next token, in nats; ``p`` in 32 bits. Tokens of a window depend on
each other, windows do not: the 95 % interval is the bootstrap's, over windows (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nearpeak.compress.quantizers import Scheme, dequantize, quantize, scales
from nearpeak.errors import UnknownName, UsageError

Rounding = Callable[[torch.Tensor], torch.Tensor]
DRAWS = 2000
"""Resamples of the bootstrap."""
GROUP = 128
WINDOW, WINDOWS = 256, 64
"""Tokens of a window of a text, and how many are measured at most."""
LOGITS = 1 << 27
"""Log-probabilities that are held at once."""


def _codes(bits: int, group: int) -> Rounding:
    """Nearest rounding of rows to integers, as compressed-tensors has it."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # Inputs that do not split into whole groups are one group, as quantizers leave them.
        scheme = Scheme(bits, group if rows.shape[1] % group == 0 else -1) if group > 0 else Scheme(bits, -1)
        scale = scales(rows, scheme)
        return dequantize(quantize(rows, scale, bits), scale).view(x.shape)

    return rounded


def _fp8(x: torch.Tensor) -> torch.Tensor:
    """Nearest rounding of rows to E4M3, the largest of each at its largest."""
    scale = (x.abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max).clamp_min(1e-30)
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


ROUNDINGS: dict[str, tuple[Rounding, Rounding | None]] = {
    "w8a8-fp": (_fp8, _fp8),
    "w8a8-int": (_codes(8, -1), _codes(8, -1)),
    "w4a16-int": (_codes(4, GROUP), None),
}
"""Of weights ``[out, in]``, and of activations ``[..., in]`` where the format rounds them."""


def layer_matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """The matrices that a format applies to, by name: all but the head, whose outputs are the vocabulary."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


@contextmanager
def in_format(model: nn.Module, name: str) -> Iterator[None]:
    """The model in a number format while the context lasts; then its weights are what they were.

    Raises:
        UnknownName: no format is called so. UsageError: the model has no matrices of ``nn.Linear``.
    """
    if name not in ROUNDINGS:
        raise UnknownName("format", name, ROUNDINGS)
    weight, activation = ROUNDINGS[name]
    matrices = layer_matrices(model)
    if not matrices:
        raise UsageError(f"{type(model).__name__} has no nn.Linear beside its head; its formats cannot be measured")
    kept = {key: linear.weight.data for key, linear in matrices.items()}
    hooks = []
    try:
        for linear in matrices.values():
            linear.weight.data = weight(linear.weight.data)
            if activation is not None:
                hooks.append(linear.register_forward_pre_hook(_rounding_inputs(activation)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for key, linear in matrices.items():
            linear.weight.data = kept[key]


def _rounding_inputs(rounded: Rounding) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _, given: (rounded(given[0]), *given[1:])


@dataclass(frozen=True)
class Divergence:
    """KL divergence of a format to the model in 32 bits, nats a token, and its 95 % interval."""

    format: str
    mean: float
    low: float
    high: float
    tokens: int

    def record(self) -> dict[str, Any]:
        """As plain values by name."""
        return asdict(self)


@torch.no_grad()
def divergences(
    model: nn.Module,
    windows: torch.Tensor,
    formats: Sequence[str] = tuple(ROUNDINGS),
    seed: int = 0,
) -> dict[str, Divergence]:
    """Measure formats on the same tokens.

    Args:
        model: a causal language model of transformers with 32-bit weights. windows: token ids ``[windows, tokens]``.
        seed: of the bootstrap.

    Raises:
        UsageError: weights are not in 32 bits, or there are fewer than two windows.
    """
    narrow = {str(m.weight.dtype) for m in layer_matrices(model).values()} - {"torch.float32"}
    if narrow:
        raise UsageError(f"the model holds {', '.join(sorted(narrow))}; load it in float32, which it is compared to")
    if len(windows) < 2:
        raise UsageError(f"{len(windows)} windows of tokens; an interval needs at least 2")
    drawn = np.random.default_rng(seed).integers(len(windows), size=(DRAWS, len(windows)))
    each: dict[str, list[torch.Tensor]] = {name: [] for name in formats}
    size = max(1, LOGITS // (windows.shape[1] * _vocabulary(model)))
    for start in range(0, len(windows), size):
        part = windows[start : start + size]
        exact = model(part).logits.float().log_softmax(-1)
        for name, means in each.items():
            with in_format(model, name):
                moved = model(part).logits.float().log_softmax(-1)
            means.append((exact.exp() * (exact - moved)).sum(-1).mean(-1))
    found = {}
    for name, means in each.items():
        mean = torch.cat(means).double().numpy()
        low, high = np.quantile(mean[drawn].mean(1), (0.025, 0.975))
        found[name] = Divergence(name, float(mean.mean()), float(low), float(high), windows.numel())
    return found


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.vocab_size)


def of_checkpoint(folder: Path, text: Path, formats: Sequence[str], seed: int = 0) -> dict[str, Divergence]:
    """Divergences of a checkpoint in transformers' layout on a text of one's own.

    A folder without a tokenizer whose vocabulary has 256 entries is a model of bytes.

    Raises:
        UsageError: there is no such file, no tokenizer, or too little text.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for path in (folder / "config.json", text):
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    if any(folder.glob("tokenizer*")):
        ids = AutoTokenizer.from_pretrained(folder)(text.read_text(), return_tensors="pt").input_ids[0]
    elif model.config.vocab_size == 256:
        ids = torch.tensor(list(text.read_bytes()), dtype=torch.long)
    else:
        raise UsageError(f"{str(folder)!r} has no tokenizer; save it beside the model")
    size = min(WINDOW, model.config.max_position_embeddings)
    count = min(WINDOWS, len(ids) // size)
    if count < 2:
        raise UsageError(f"{str(text)!r} has {len(ids)} tokens; at least {2 * size} are needed")
    # Spread over the whole text.
    starts = torch.linspace(0, len(ids) - size, count).long()
    windows = torch.stack([ids[s : s + size] for s in starts.tolist()])
    return divergences(model, windows, [name for name in formats if name in ROUNDINGS], seed)
