"""How many parameters a model has, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearpeak.workload.architecture import Architecture, Block, CompressedAttention, Experts, Linear, LinearAttention
from nearpeak.workload.matrices import expert_linears, ffn_linears, mixer_linears

Part = Literal["embedding", "attention", "ffn", "experts", "head", "norms", "mtp", "tower"]


@dataclass(frozen=True)
class Tensor:
    """``count`` tensors of one shape.

    ``part``: what they belong to (shared experts and routers are of ``ffn``). ``active``: how many of them one token
    meets. Vectors (norms, biases, decays) that belong together are given as one.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    part: Part
    active: int

    @property
    def size(self) -> int:
        """Parameters in one of them."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model by part.

    ``total`` is the whole checkpoint but for multi-token-prediction blocks: tower included. ``active`` is what a token
    of text meets in the blocks and the head. A lookup is no product, so the embedding counts only where it is the head;
    ``active_with_embedding`` adds it, as some authors do (DeepSeek, Qwen).
    """

    embedding: int
    attention: int
    ffn: int
    experts: int
    head: int
    norms: int
    mtp: int
    tower: int
    active: int

    @property
    def total(self) -> int:
        """All but ``mtp``."""
        return self.language + self.tower

    @property
    def language(self) -> int:
        """All but ``mtp`` and ``tower``."""
        return self.embedding + self.attention + self.ffn + self.experts + self.head + self.norms

    @property
    def active_with_embedding(self) -> int:
        """``active`` and the input embedding, counted once where it is the head too."""
        return self.active if self.head == 0 else self.active + self.embedding


def tensors(architecture: Architecture) -> Iterator[Tensor]:
    """All tensors of a model."""
    a = architecture
    # A tied table is met as the head: its product is real, though the tensor is the embedding's.
    yield Tensor("embed", (a.vocab, a.hidden), 1, "embedding", int(a.tied and not a.encoder))
    if a.tables:
        yield Tensor("tables", (a.tables,), 1, "embedding", 0)
    for number, block in enumerate(a.blocks):
        yield from _block(f"blocks.{number}", block, a.hidden)
    for linear in a.linears:
        yield from _linear("model", linear, 1, "ffn")
    if a.extra:
        yield Tensor("norm", (a.extra,), 1, "norms", 1)
    if not a.tied and not a.encoder:
        yield Tensor("head", (a.vocab, a.hidden), 1, "head", 1)
    if a.head_bias:
        yield Tensor("head.bias", (a.vocab,), 1, "head", 1)
    for number, block in enumerate(a.mtp):
        for tensor in _block(f"mtp.{number}", block, a.hidden):
            yield Tensor(tensor.name, tensor.shape, tensor.count, "mtp", 0)
    if a.tower:
        yield Tensor("tower", (a.tower,), 1, "tower", 0)


def _block(name: str, block: Block, hidden: int) -> Iterator[Tensor]:
    n, mixer, ffn = block.count, block.mixer, block.ffn
    if mixer is not None:
        for linear in mixer_linears(mixer, hidden):
            yield from _linear(f"{name}.mixer", linear, n, "attention")
        if vectors := mixer.extra + _small_matrices(mixer):
            yield Tensor(f"{name}.mixer.vectors", (vectors,), n, "attention", n)
    if ffn is not None:
        for linear in ffn_linears(ffn, hidden):
            yield from _linear(f"{name}.ffn", linear, n, "ffn")
    if isinstance(ffn, Experts):
        if ffn.extra:
            yield Tensor(f"{name}.ffn.vectors", (ffn.extra,), n, "ffn", n)
        for linear in expert_linears(ffn, hidden):
            for t in _linear(f"{name}.ffn", linear, 1, "experts"):
                yield Tensor(t.name, t.shape, n * ffn.count, t.part, n * ffn.topk)
    for linear in block.linears:
        yield from _linear(name, linear, n, "ffn")
    if block.norms:
        yield Tensor(f"{name}.norms", (block.norms,), n, "norms", n)


def _small_matrices(mixer: object) -> int:
    """Parameters that follow from a mixer's shape but multiply token by token: a short convolution's taps, and the
    place of a token within what is compressed to one entry.
    """
    match mixer:
        case LinearAttention():
            return mixer.conv_channels * (mixer.conv + int(mixer.conv_bias))
        case CompressedAttention(indexer=None):
            return mixer.ratio * mixer.head_dim
        case CompressedAttention(indexer=indexer) if indexer is not None:
            return mixer.ratio * 2 * (mixer.head_dim + indexer.head_dim)
        case _:
            return 0


def _linear(prefix: str, linear: Linear, count: int, part: Part) -> Iterator[Tensor]:
    shape = (linear.out, linear.inp // linear.groups)
    yield Tensor(f"{prefix}.{linear.name}", shape, count, part, count)
    if linear.bias:
        yield Tensor(f"{prefix}.{linear.name}.bias", (linear.out,), count, part, count)


def parameters(architecture: Architecture) -> Parameters:
    """Parameters of a model by part."""
    parts = dict.fromkeys(("embedding", "attention", "ffn", "experts", "head", "norms", "mtp", "tower"), 0)
    active = 0
    for tensor in tensors(architecture):
        parts[tensor.part] += tensor.size * tensor.count
        active += tensor.size * tensor.active
    return Parameters(**parts, active=active)
