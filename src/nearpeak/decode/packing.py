"""Batches without padding: dropped before the linear layers, restored only around attention (Du et al., "EnergonAI",
arXiv 2209.02341, section 4.3: redundant computation elimination).

Sequences of a batch are padded to the longest. Everything but attention works on each token by itself, so that padding
there is computed for nothing. Here the kept tokens of all sequences stand in one row ``[1, tokens]``; before attention
queries, keys and values are put at their places in ``[batch, longest]``, and after it the kept ones are taken out
again. Attention is transformers' own hook (``AttentionInterface``), set for the time of ``hooked``, so that any model
that takes the hook runs unchanged.

What it saves follows from what tokens cost the linear layers (``c``, and ``a`` for each), what a sequence costs
attention (``b``), and what it costs to restore a sequence (``r``) and to put and take a token (``m``)::

    padded = c + a batch longest + b batch          packed = c + a tokens + (b + r) batch + m tokens
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.decode.attention_hook import attending
from nearpeak.errors import UnknownName, UsageError
from nearpeak.topic import Explanation, Option, Table, Topic, names, require_positive

Tensor = Any
"""A torch tensor; torch itself is imported where it runs, since the command line reads this module's topic."""
HOOK, LINEAR = "nearpeak_packed", "nearpeak_linear_only"
"""Names of the attention functions in transformers: with padding restored, and none at all (for timing)."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the kept tokens of a batch are. ``place``: ``[tokens]`` among ``batch * longest``.

    ``mask``: of keys, ``[batch, 1, 1, longest]``, or with ``causal`` of scores, ``[batch, 1, longest, longest]``.
    """

    place: Tensor
    batch: int
    longest: int
    mask: Tensor

    @classmethod
    def of(cls, kept: Tensor, causal: bool = False) -> "Layout":
        """The layout of a batch's attention mask ``[batch, longest]``: not 0 where a token is kept.

        Raises:
            UsageError: it has not two dimensions, or a sequence keeps no token.
        """
        import torch

        if kept.ndim != 2 or not bool(kept.bool().any(1).all()):
            raise UsageError(
                f"a mask of shape {tuple(kept.shape)}: [batch, longest] with a token in each row is needed"
            )
        real = kept.bool()
        batch, longest = real.shape
        mask = real[:, None, None, :]
        if causal:
            mask = mask & torch.ones(longest, longest, dtype=torch.bool, device=real.device).tril()
        return cls(real.flatten().nonzero()[:, 0], batch, longest, mask)

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return int(self.place.numel())

    def pack(self, padded: Tensor) -> Tensor:
        """The kept tokens ``[tokens, ...]`` of ``[batch, longest, ...]``."""
        return padded.flatten(0, 1).index_select(0, self.place)

    def restore(self, packed: Tensor) -> Tensor:
        """``[batch, longest, ...]`` of the kept tokens ``[tokens, ...]``, zeros between them."""
        padded = packed.new_zeros(self.batch * self.longest, *packed.shape[1:])
        return padded.index_copy_(0, self.place, packed).unflatten(0, (self.batch, self.longest))


def attend(
    module: Any,  # noqa: ANN401 - a transformers attention module
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    **how: Any,  # noqa: ANN401 - what else transformers passes
) -> tuple[Tensor, None]:
    """Attention of ``[1, heads, tokens, head_dim]``, each token to those of its own sequence.

    Raises:
        UsageError: the model wants of attention what is not done here.
    """
    from torch.nn.functional import scaled_dot_product_attention

    window = how.get("sliding_window")
    if how.get("softcap") is not None or how.get("s_aux") is not None or (window and window < layout.longest):
        raise UsageError(
            "attention with a soft cap, sinks or a shorter sliding window is not packed; take another model"
        )
    q, k, v = (layout.restore(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=layout.mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )  # fmt: skip
    return layout.pack(out.transpose(1, 2))[None], None


def _nothing(module: Any, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:  # noqa: ANN401
    return query.transpose(1, 2).contiguous(), None


def causal(model: Any) -> bool:  # noqa: ANN401 - a transformers model
    """Whether a token of a model attends to those before it only."""
    return any(getattr(part, "is_causal", False) for part in model.modules())


def packed_states(model: Any, ids: Tensor, kept: Tensor) -> Tensor:  # noqa: ANN401 - a transformers model
    """The last hidden states ``[tokens, hidden]`` of the kept tokens, computed without padding.

    Args:
        model: an encoder or decoder without head. ids, kept: tokens and attention mask, ``[batch, longest]``.
    """
    layout = Layout.of(kept, causal(model))
    with attending(model, HOOK, attend):
        return _run(model, layout.pack(ids)[None], layout.place[None] % layout.longest, layout)


def _run(model: Any, ids: Tensor, position: Tensor, layout: Layout) -> Tensor:  # noqa: ANN401
    return model(input_ids=ids, position_ids=position, layout=layout, use_cache=False).last_hidden_state[0]


@dataclass(frozen=True)
class Comparison:
    """A batch with and without padding, seconds: medians of interleaved runs.

    Attributes:
        kept_share: of the padded batch's tokens. padded, packed: measured.
        predicted_padded, predicted_packed: from the measured parts.
        fixed, token, sequence, restored, moved: ``c``, ``a``, ``b``, ``r`` and ``m``.
        error: largest difference at a kept token.
    """

    kept_share: float
    padded: float
    packed: float
    predicted_padded: float
    predicted_packed: float
    fixed: float
    token: float
    sequence: float
    restored: float
    moved: float
    error: float

    @property
    def ratio(self) -> float:
        """Of packed to padded time, measured."""
        return self.packed / self.padded

    @property
    def predicted(self) -> float:
        """The same, from the parts."""
        return self.predicted_packed / self.predicted_padded


def compare(model: Any, lengths: NDArray[np.int64], repeats: int = 9, seed: int = 0) -> Comparison:  # noqa: ANN401
    """Time a batch of sequences of these lengths with and without padding, and the parts that predict both.

    The parts are measured at other sizes than they predict: the linear layers on an eighth and on all of the padded
    tokens; attention on half of the sequences, alone and around it the moving of an eighth and of all of their tokens.

    Args:
        model: an encoder or decoder without head, in ``eval`` mode. lengths: tokens of each sequence, ``[batch]``.
    """
    import torch

    require_positive(lengths=lengths, repeats=repeats)
    draw = torch.Generator().manual_seed(seed)
    here = next(model.parameters()).device
    batch, longest = len(lengths), int(lengths.max())
    kept = (torch.arange(longest) < torch.as_tensor(lengths)[:, None]).long().to(here)
    ids = torch.randint(model.config.vocab_size, (batch, longest), generator=draw).to(here)
    layout, half = Layout.of(kept, causal(model)), max(1, batch // 2)
    every, eighth = (Layout.of(torch.arange(longest, device=here).expand(half, -1) < n, causal(model))
                     for n in (longest, max(1, longest // 8)))  # fmt: skip
    counts = max(1, batch * longest // 8), batch * longest
    rows = [(ids.flatten()[None, :n], (torch.arange(n, device=here) % longest)[None]) for n in counts]
    head = model.config.hidden_size // model.config.num_attention_heads
    groups = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    kind = next(model.parameters()).dtype
    q, k, v = (
        torch.randn(1, h, every.tokens, head, generator=draw).to(here, kind)
        for h in (model.config.num_attention_heads, groups, groups)
    )
    whole = [every.restore(x[0].transpose(0, 1)).transpose(1, 2) for x in (q, k, v)]

    def linear(n: int) -> Tensor:
        with attending(model, LINEAR, _nothing):
            return _run(model, *rows[n], layout)

    def attention() -> Tensor:
        from torch.nn.functional import scaled_dot_product_attention

        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(whole[0], whole[1], whole[2], attn_mask=every.mask, enable_gqa=grouped)

    calls: dict[str, Callable[[], Tensor]] = {
        "padded": lambda: model(input_ids=ids, attention_mask=kept, use_cache=False).last_hidden_state,
        "packed": lambda: packed_states(model, ids, kept),
        "few": lambda: linear(0),
        "many": lambda: linear(1),
        "attention": attention,
        "moved few": lambda: attend(
            None, q[:, :, : eighth.tokens], k[:, :, : eighth.tokens], v[:, :, : eighth.tokens], None, layout=eighth
        ),
        "moved": lambda: attend(None, q, k, v, None, layout=every),
    }
    with torch.inference_mode():
        error = float((layout.pack(calls["padded"]()) - calls["packed"]()).abs().max())
        took = interleaved(calls, repeats, here.type)
    layers = model.config.num_hidden_layers
    token = (took["many"] - took["few"]) / (counts[1] - counts[0])
    fixed = max(0.0, took["many"] - token * counts[1])
    sequence = layers * took["attention"] / half
    moved = layers * max(0.0, took["moved"] - took["moved few"]) / max(1, every.tokens - eighth.tokens)
    restored = max(0.0, layers * took["moved few"] - moved * eighth.tokens) / half - sequence
    return Comparison(
        layout.tokens / counts[1], took["padded"], took["packed"],
        fixed + token * counts[1] + sequence * batch,
        fixed + (token + moved) * layout.tokens + (sequence + restored) * batch,
        fixed, token, sequence, restored, moved, error,
    )  # fmt: skip


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each call, one run of each by turns after one that does not count."""
    from torch import cuda

    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            begun = perf_counter()
            call()
            if device == "cuda":
                cuda.synchronize()
            taken[name].append(perf_counter() - begun)
    return {name: median(times[1:]) for name, times in taken.items()}


def _uniform(rng: np.random.Generator, batch: int, longest: int) -> NDArray[np.float64]:
    return rng.uniform(1, longest, batch)


def _long_tailed(rng: np.random.Generator, batch: int, longest: int) -> NDArray[np.float64]:
    return rng.lognormal(np.log(longest / 8), 0.8, batch)


def _two_sizes(rng: np.random.Generator, batch: int, longest: int) -> NDArray[np.float64]:
    return np.where(rng.random(batch) < 0.5, longest / 8, longest * 0.9)


MIXES: dict[str, Callable[[np.random.Generator, int, int], NDArray[np.float64]]] = {
    "uniform": _uniform,
    "long-tailed": _long_tailed,
    "two-sizes": _two_sizes,
}
"""Mixes of lengths, by name: drawn lengths of ``batch`` sequences."""


def lengths_of(mix: str, batch: int, longest: int, seed: int) -> NDArray[np.int64]:
    """Lengths ``[batch]`` of a mix, the longest of them ``longest``.

    Raises:
        UnknownName: there is no such mix.
    """
    if mix not in MIXES:
        raise UnknownName("mix of lengths", mix, MIXES)
    drawn = MIXES[mix](np.random.default_rng(seed), batch, longest)
    lengths = np.clip(np.rint(drawn), 1, longest).astype(np.int64)
    lengths[lengths.argmax()] = longest
    return lengths


def encoder(layers: int, hidden: int, longest: int, device: str = "cpu", seed: int = 0) -> Any:  # noqa: ANN401
    """A BERT with random weights, heads of 64, in ``eval`` mode.

    Raises:
        UsageError: ``hidden`` is not a multiple of 64.
    """
    import torch
    from transformers import BertConfig, BertModel

    if hidden < 64 or hidden % 64:
        raise UsageError(f"hidden must be a multiple of 64, the width of a head, not {hidden}")
    torch.manual_seed(seed)
    shape = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden, max_position_embeddings=longest, vocab_size=1000,
    )  # fmt: skip
    return BertModel(shape, add_pooling_layer=False).train(False).to(device)


def _explain(
    layers: int, hidden: int, batch: int, longest: int, mixes: tuple[str, ...], device: str, repeats: int, seed: int
) -> Explanation:
    require_positive(layers=layers, batch=batch, longest=longest)
    model = encoder(layers, hidden, longest, device, seed)
    found = [compare(model, lengths_of(mix, batch, longest, seed), repeats, seed) for mix in mixes]
    worst = max(abs(c.predicted / c.ratio - 1) for c in found)
    return Explanation(
        {"worst_prediction_error_share": worst, "largest_difference": max(c.error for c in found)},
        (
            Table.of(
                "A batch with and without padding",
                lengths=mixes,
                kept_share=[c.kept_share for c in found],
                padded_time=[c.padded for c in found],
                packed_time=[c.packed for c in found],
                measured_ratio=[c.ratio for c in found],
                predicted_ratio=[c.predicted for c in found],
            ),
            Table.of(
                "What the prediction is made of",
                lengths=mixes,
                fixed_time=[c.fixed for c in found],
                linear_token_time=[c.token for c in found],
                attention_sequence_time=[c.sequence for c in found],
                restored_sequence_time=[c.restored for c in found],
                moved_token_time=[c.moved for c in found],
            ),
        ),
        (f"The ratio of packed to padded time is predicted within {100 * worst:.2g} %.",),
    )


TOPIC = Topic(
    "packing",
    "What does it save to drop padding before the linear layers and restore it around attention only?",
    "Du et al., EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models, 2022 "
    "(arXiv 2209.02341)",
    (
        Option("layers", int, "Layers of the encoder.", 2),
        Option("hidden", int, "Its width; heads of 64.", 256),
        Option("batch", int, "Sequences.", 16),
        Option("longest", int, "Tokens of the longest.", 128),
        Option("mixes", names, "Mixes of lengths.", tuple(MIXES)),
        Option("device", str, "Where it runs: cpu or cuda.", "cpu"),
        Option("repeats", int, "Runs whose median counts.", 9),
        Option("seed", int, "Of weights, lengths and tokens.", 0),
    ),
    _explain,
    "--hidden 256 --layers 2 --batch 16",
)
