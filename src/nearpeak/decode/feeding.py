"""Layers of a torch model that get their weights only while they run, from disk or from a host's memory.

A layer's parameters are put on ``meta``, where they have no memory. Hooks bind them to a buffer just before the layer
runs and let go of it after. Nothing of the model's own code is touched, and logits are the same to the last bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nearpeak.errors import NearpeakError

ALIGNMENT = 64
"""Bytes that tensors in a buffer are aligned to."""


@dataclass(frozen=True)
class Piece:
    """A parameter of a layer: its module, its name there and in the checkpoint, and its place in a buffer."""

    module: nn.Module
    name: str
    full_name: str
    meta: nn.Parameter
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.meta.numel() * self.meta.element_size()

    def bind(self, buffer: torch.Tensor) -> None:
        """Let the parameter be what lies in ``buffer``, uint8."""
        view = buffer[self.start : self.start + self.size].view(self.meta.dtype).view(self.meta.shape)
        self.module._parameters[self.name] = nn.Parameter(view, requires_grad=False)


@dataclass(frozen=True)
class Hollow:
    """A model whose layers have no weights of their own.

    Attributes:
        layers: in the order in which they run. pieces: their parameters, one list a layer. size: bytes of the largest.
    """

    model: Any
    layers: tuple[nn.Module, ...]
    pieces: tuple[tuple[Piece, ...], ...]

    @property
    def size(self) -> int:
        """Bytes of a buffer that holds any layer."""
        return max(p[-1].start + p[-1].size for p in self.pieces)


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The layers of a model and their name: the list of modules that has the most parameters.

    Raises:
        NearpeakError: it has no list of modules.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise NearpeakError(f"{type(model).__name__} has no list of layers that could stream")
    return max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))


def hollow(model: Any) -> Hollow:  # noqa: ANN401 (a transformers model)
    """Describe the layers of a model and put their parameters on ``meta``, where they have no memory."""
    name, layers = layers_of(model)
    pieces = []
    for k, layer in enumerate(layers):
        start, own = 0, []
        for full, module in layer.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                meta = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                module._parameters[leaf] = meta
                own.append(Piece(module, leaf, ".".join(filter(None, (name, str(k), full, leaf))), meta, start))
                start += -(-own[-1].size // ALIGNMENT) * ALIGNMENT
        pieces.append(tuple(own))
    return Hollow(model, tuple(layers), tuple(pieces))


class Feed(Protocol):
    """Who brings the weights of layers: ``take`` hands out a buffer with layer ``k``, ``give`` takes it back."""

    def take(self, k: int) -> torch.Tensor: ...  # noqa: D102

    def give(self, k: int, buffer: torch.Tensor) -> None: ...  # noqa: D102


@contextmanager
def fed(of: Hollow, feed: Feed) -> Iterator[None]:
    """Let every layer take its weights from ``feed`` when it runs, and give them back after."""
    held: dict[int, torch.Tensor] = {}

    def before(k: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # noqa: ANN401
            held[k] = feed.take(k)
            for piece in of.pieces[k]:
                piece.bind(held[k])

        return hook

    def after(k: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # noqa: ANN401
            for piece in of.pieces[k]:
                piece.module._parameters[piece.name] = piece.meta
            feed.give(k, held.pop(k))

        return hook

    handles = [layer.register_forward_pre_hook(before(k)) for k, layer in enumerate(of.layers)]
    handles += [layer.register_forward_hook(after(k)) for k, layer in enumerate(of.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let modules that are built inside have parameters without memory; their buffers are real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a uint8 tensor in host memory, not copied."""
    array: Any = tensor.numpy()
    return memoryview(array)


def transformers_model(folder: Path, weights: bool) -> Any:  # noqa: ANN401 (a transformers model)
    """The causal language model of a folder, with its weights or with those that its classes make up."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    found = auto.from_pretrained(folder) if weights else auto.from_config(AutoConfig.from_pretrained(folder))
    return found.eval()


def random_gpt(layers: int, hidden: int, seed: int = 0) -> Any:  # noqa: ANN401 (a transformers model)
    """A GPT-2 of random weights, with heads of 64 values and 1,000 tokens of vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes: Any = {"n_layer": layers, "n_embd": hidden, "n_head": max(1, hidden // 64), "vocab_size": 1000}
    model: Any = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=1024, bos_token_id=None, eos_token_id=None))
    return model.eval()
