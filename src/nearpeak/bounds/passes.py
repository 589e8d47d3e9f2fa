"""What a pass through a model must compute and read: exact counts of FLOP and bytes, no device and no calibration.

Counts are of one sequence and of the whole model, before any cut over devices. ``context`` broadcasts everywhere.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.attention import STATE_BYTES
from nearpeak.workload import (
    Architecture,
    Experts,
    LinearAttention,
    attended_tokens,
    expert_linears,
    head_width,
    kv_elements,
    parameters,
    sequence_elements,
    state_elements,
)

Array = NDArray[np.float64]
POSITIONS = (np.arange(512) + 0.5) / 512
"""Where along a prompt the tokens that a query sees are counted; what grows linearly is summed exactly."""


def matrix_flop(model: Architecture) -> float:
    """FLOP of one token in all matrices: a multiply-add for each parameter that the token meets."""
    return 2.0 * parameters(model).active


def prefill_matrix_flop(model: Architecture, context: ArrayLike) -> Array:
    """FLOP of a whole prompt in all matrices; the head multiplies its last token alone."""
    head = 0 if model.encoder else model.vocab * model.hidden
    return np.asarray(np.asarray(context, float) * (matrix_flop(model) - 2.0 * head) + 2.0 * head)


def met_parameters(model: Architecture, tokens: ArrayLike) -> Array:
    """Parameters that any of ``tokens`` tokens meets: all but the embedding, and of the experts those that are chosen.

    Experts are taken as chosen evenly and independently: of ``E`` experts ``E (1 - (1 - k / E) ** tokens)`` are met.
    """
    found: Array = np.asarray(float(parameters(model).active))
    for block in model.blocks:
        if isinstance(block.ffn, Experts):
            one = sum(linear.parameters for linear in expert_linears(block.ffn, model.hidden))
            chosen = block.ffn.topk / block.ffn.count
            touched = block.ffn.count * (1.0 - (1.0 - chosen) ** np.asarray(tokens, float))
            found = found + block.count * one * (touched - block.ffn.topk)
    return found


def attention_flop(model: Architecture, context: ArrayLike, decoding: bool = True) -> Array:
    """FLOP of one token in the mixers' own kernels, over ``context`` tokens, itself included.

    A head multiplies its query with each key that it sees, and sums as many values: ``2 heads (d_k + d_v)`` FLOP a key.
    A recurrent mixer decays, updates and reads each element of its state. Scoring by an indexer is left out.
    """
    found: Array = np.zeros(np.shape(context))
    for block in model.blocks:
        match block.mixer:
            case None:
                continue
            case LinearAttention() as mixer:
                found = found + block.count * 6.0 * mixer.v_heads * mixer.k_dim * mixer.v_dim
            case mixer:
                found = found + block.count * 2.0 * mixer.heads * head_width(mixer, decoding) * attended_tokens(
                    mixer, context
                )
    return found


def prefill_attention_flop(model: Architecture, context: ArrayLike) -> Array:
    """FLOP of the mixers' own kernels over a whole prompt of ``context`` tokens under the causal mask."""
    tokens = np.asarray(context, float)
    at = tokens[..., None] * POSITIONS + 0.5  # query i sees i tokens: the mean of 1..n is (n + 1) / 2
    return np.asarray(tokens * attention_flop(model, at, decoding=False).mean(-1))


def cache_bytes(model: Architecture, context: ArrayLike, element: ArrayLike = 2.0) -> Array:
    """Bytes that one sequence of ``context`` tokens keeps. ``element``: bytes of a cached value; states have 4."""
    states = _states(model)
    return np.asarray((sequence_elements(model, context) - states) * np.asarray(element) + states * STATE_BYTES)


def cache_read(model: Architecture, context: ArrayLike, element: ArrayLike = 2.0) -> Array:
    """Bytes of its cache that one decoding token reads, of ``context`` tokens; a recurrent state is also written."""
    found: Array = np.asarray(2 * _states(model) * STATE_BYTES)
    for block in model.blocks:
        if block.mixer is not None:
            found = found + block.count * kv_elements(block.mixer) * attended_tokens(block.mixer, context) * np.asarray(
                element
            )
    return np.asarray(found)


def _states(model: Architecture) -> float:
    return float(sum(b.count * state_elements(b.mixer) for b in model.blocks if b.mixer is not None))
