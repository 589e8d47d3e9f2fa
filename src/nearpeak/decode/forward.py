"""One forward pass for tokens of many requests: parts of prompts and decoding requests in one row of tokens.

All tokens of a step go through the model's matrices together, ``[1, tokens]``: one read of the weights for a chunk of a
prompt and for the decodes on its back (Agrawal et al. 2023, "SARATHI: Efficient LLM Inference by Piggybacking Decodes
with Chunked Prefills", section 4.2; selective batching of Orca, Yu et al. 2022). Only attention knows requests: it is
transformers' own hook (``AttentionInterface``), set for the time of ``packed``, so that any causal model that takes the
hook runs unchanged. Whether a model does is tried out, not assumed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nearpeak.decode.attention_hook import attending
from nearpeak.decode.slots import Slots, causal
from nearpeak.errors import NearpeakError

HOOK = "nearpeak_slots"
"""Name of the attention function in transformers."""


@dataclass(frozen=True)
class Chunk:
    """Tokens of one prompt: ``first`` to ``last`` (excluded) of the step's, at ``start`` of the prompt, of ``row``.

    ``mask``: ``[tokens, start + tokens]``.
    """

    first: int
    last: int
    row: int
    mask: Tensor


@dataclass(frozen=True)
class Step:
    """The tokens of a step: first one of each decoding request, in the order of their rows, then parts of prompts.

    Attributes:
        slots: the cache. row, position: of each token, ``[tokens]``.
        decodes: tokens that decode. chunks: the parts of prompts.
        mask: of the rows up to the last that decodes, ``[rows, 1, 1, longest]``.
        dense: whether these rows all decode, so that no query needs to be put at its place.
    """

    slots: Slots
    row: Tensor
    position: Tensor
    decodes: int
    chunks: tuple[Chunk, ...]
    mask: Tensor
    dense: bool

    @classmethod
    def of(cls, slots: Slots, row: ArrayLike, start: ArrayLike, count: ArrayLike, decodes: int, like: Tensor) -> "Step":
        """The step in which request ``i`` puts ``count[i]`` tokens from position ``start[i]`` on into ``row[i]``.

        Args:
            slots: the cache. row, start, count: ``[requests]``; the first ``decodes`` ascend in row, one token each.
            like: a tensor of the model's number format and device.
        """
        rows, starts, counts = (np.asarray(a, np.int64) for a in (row, start, count))
        last = np.cumsum(counts)
        first = last - counts
        position = np.arange(counts.sum()) - np.repeat(first - starts, counts)
        device, dtype = like.device, like.dtype
        at = torch.from_numpy(position).to(device)
        reach = int(rows[decodes - 1]) + 1 if decodes else 0
        newest = np.zeros(reach, np.int64)  # a row that does not decode attends to its first token, for nothing
        newest[rows[:decodes]] = starts[:decodes]
        longest = int(newest.max(initial=0)) + 1
        return cls(
            slots, torch.from_numpy(np.repeat(rows, counts)).to(device), at, decodes,
            tuple(
                Chunk(int(a), int(b), int(r), causal(at[a:b], int(s + c), dtype))
                for a, b, r, s, c in zip(*(v[decodes:] for v in (first, last, rows, starts, counts)), strict=True)
            ),
            causal(torch.from_numpy(newest).to(device), longest, dtype)[:, None, None],
            reach == decodes,
        )  # fmt: skip


def attend(
    module: Any,  # noqa: ANN401 - a transformers attention module
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    step: Step,
    **how: Any,  # noqa: ANN401 - what else transformers passes
) -> tuple[Tensor, None]:
    """Attention of a step's tokens, each to what its own request has cached.

    Args:
        module: its ``layer_idx`` says which layer. attention_mask: none. how: what a model passes beside.
        query: ``[1, heads, tokens, head_dim]``. key, value: ``[1, kv_heads, tokens, head_dim]``.
        scaling: of the scores. step: what the tokens are.

    Returns:
        ``[1, tokens, heads, head_dim]``.

    Raises:
        NearpeakError: the model wants of attention what is not done here.
    """
    slots = step.slots
    window = how.get("sliding_window")
    if window is not None and window < slots.length:
        raise NearpeakError(f"a sliding window of {window} tokens is not served; keep prompt and answer within it, "
                            f"not {slots.length}")  # fmt: skip
    for name in ("softcap", "s_aux"):
        if how.get(name) is not None:
            raise NearpeakError(f"attention with {name} is not served; take a model without it")
    keys, values = slots.write(module.layer_idx, step.row, step.position, *(x[0].transpose(0, 1) for x in (key, value)))
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[3]
    group = heads // kv_heads  # heads that share keys stand as queries of one head, so that no key is copied
    out = query.new_empty(query.shape[2], heads, value.shape[3])
    if step.decodes:
        rows, longest = step.mask.shape[0], step.mask.shape[3]
        asked = query[0, :, : step.decodes].transpose(0, 1).reshape(step.decodes, kv_heads, group, width)
        if not step.dense:
            asked = asked.new_zeros(rows, *asked.shape[1:]).index_copy_(0, step.row[: step.decodes], asked)
        got = scaled_dot_product_attention(
            asked, keys[:rows, :, :longest], values[:rows, :, :longest], step.mask, scale=scaling
        )
        got = got.reshape(rows, heads, -1)
        out[: step.decodes] = got if step.dense else got[step.row[: step.decodes]]
    for chunk in step.chunks:
        tokens, seen = chunk.mask.shape
        asked = query[:, :, chunk.first : chunk.last].reshape(1, kv_heads, group * tokens, width)
        got = scaled_dot_product_attention(
            asked, keys[chunk.row, None, :, :seen], values[chunk.row, None, :, :seen],
            chunk.mask.repeat(group, 1), scale=scaling,
        )  # fmt: skip
        out[chunk.first : chunk.last] = got.reshape(heads, tokens, -1).transpose(0, 1)
    return out[None], None


def logits(model: Any, step: Step, tokens: Tensor, keep: Tensor) -> Tensor:  # noqa: ANN401 - a transformers model
    """The model over a step's ``tokens`` ``[tokens]``: logits at the places ``keep``, ``[keep, vocabulary]``."""
    with torch.inference_mode():
        out = model(
            input_ids=tokens[None], position_ids=step.position[None], use_cache=False, logits_to_keep=keep, step=step
        )
    return torch.as_tensor(out.logits[0])


def read(model: Any, prompts: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:  # noqa: ANN401
    """Logits at every token of ``prompts`` that are read together, in parts: prompt ``i`` puts ``sizes[k][i]`` tokens
    into step ``k``.

    Returns:
        ``[tokens, vocabulary]`` of each prompt.
    """
    slots = Slots(len(prompts), max(p.numel() for p in prompts))
    like = next(model.parameters())
    seen = np.zeros(len(prompts), np.int64)
    found: list[list[Tensor]] = [[] for _ in prompts]
    for size in sizes:
        count = np.asarray(size, np.int64)
        rows = np.flatnonzero(count)
        step = Step.of(slots, rows, seen[rows], count[rows], 0, like)
        tokens = torch.cat([prompts[r][seen[r] : seen[r] + count[r]] for r in rows.tolist()])
        out = logits(model, step, tokens.to(like.device), torch.arange(tokens.numel(), device=like.device))
        for r, part in zip(rows.tolist(), torch.split(out, count[rows].tolist()), strict=True):
            found[r].append(part)
        seen += count
    return [torch.cat(parts) for parts in found]


@contextmanager
def packed(model: Any) -> Iterator[None]:  # noqa: ANN401 - a transformers model
    """For the time of this context the model computes steps (``logits``); afterwards it is as it was.

    It is tried first: two prompts read together and in parts must have the logits that the model itself computes of
    each alone.

    Raises:
        NearpeakError: the model's layers need more than attention to their own request's tokens (recurrent layers,
            positions that attention adds, another kind of cache), so that it cannot be run here.
    """
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(model.config.get_text_config().vocab_size, (n,), generator=draw) for n in (7, 4)]
    with torch.inference_mode():
        own = [model(input_ids=p[None].to(device), use_cache=False).logits[0].float() for p in ids]
    with attending(model, HOOK, attend):
        try:
            got = read(model, ids, [(4, 0), (3, 1), (0, 3)])
        except (TypeError, AttributeError, RuntimeError, ValueError, KeyError) as error:
            raise NearpeakError(f"{type(model).__name__} does not run with attention of our own: {error}") from error
        # Two orders of summation differ by some roundings a layer.
        allowed = 200 * torch.finfo(next(model.parameters()).dtype).eps
        worst = max(float((a - b.float()).abs().max() / a.abs().max()) for a, b in zip(own, got, strict=True))
        if not worst <= allowed:
            raise NearpeakError(
                f"{type(model).__name__} has other logits when requests share a step (off by {worst:.2g} of the "
                f"largest; {allowed:.2g} is rounding): it keeps more of a request than keys and values. "
                "Take a model with plain causal attention in every layer"
            )
        yield
