"""Attention of our own inside a transformers model: the one place that switches it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attending(model: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:  # noqa: ANN401 (transformers')
    """A transformers model whose layers attend by ``function``, until the end of the block.

    ``name``: what transformers calls the function. Its signature is that of transformers' ``AttentionInterface``.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
