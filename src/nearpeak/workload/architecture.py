"""A model as the cost functions see it: blocks of a token mixer and a feed-forward part, each a few matrices.

An ``Architecture`` holds no weights and no numbers of one run. It says which matrices a token meets
(``mixer_linears``, ``ffn_linears``), what attention reads (``kv_elements``), and how many parameters there are
(``parameters``). Shapes follow the papers: ``out x inp`` for a matrix that maps ``[..., inp]`` to ``[..., out]``.
"""

from dataclasses import dataclass
from typing import Literal

Shard = Literal["column", "row", "replicate"]


@dataclass(frozen=True)
class Linear:
    """A matrix ``[out, inp]``, and how tensor parallelism cuts it: by rows of output (column), of input (row), or not.

    ``groups``: the matrix is block-diagonal, with this many blocks ``[out / groups, inp / groups]``.
    """

    name: str
    out: int
    inp: int
    shard: Shard
    bias: bool = False
    groups: int = 1

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.out * self.inp // self.groups + (self.out if self.bias else 0)


@dataclass(frozen=True)
class Indexer:
    """Sparse attention: a small scorer that keeps the ``topk`` best entries of the context for each query.

    DeepSeek sparse attention scores single tokens. MiniMax-M3 scores blocks of ``block`` tokens; ``topk`` counts
    tokens all the same. ``heads`` 0: the layer has no scorer and no index keys, it reuses the choice of one before.
    """

    heads: int
    head_dim: int
    topk: int
    block: int = 1


@dataclass(frozen=True)
class Attention:
    """Softmax attention with grouped keys and values (MHA when ``heads == kv_heads``).

    Attributes:
        window: sliding window in tokens, 0 for none. ``chunked``: the window does not slide; a token sees its own
            chunk of ``window`` tokens from the chunk's start (Llama-4).
        gate: outputs of a projection that gates the heads' outputs: ``heads * v_head_dim`` element by element,
            ``heads`` head by head, 0 for none.
        bias: of q, k and v. out_bias: of the output projection.
        own_kv: False in a layer that attends the keys and values of an earlier one, and so has none.
        own_values: False where values are the keys before their norm, and only keys are projected. Both are cached.
        extra: parameters of norms, sinks and the like, that meet a token but multiply no matrix.
    """

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int = 0
    chunked: bool = False
    gate: int = 0
    bias: bool = False
    out_bias: bool = False
    own_kv: bool = True
    own_values: bool = True
    indexer: Indexer | None = None
    extra: int = 0


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): keys and values live as one latent vector of ``kv_rank + rope_dim``.

    ``q_rank`` 0: queries are projected in one step. ``gate``: as in ``Attention``. ``bias``: of the down-projections
    and the output.
    """

    heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    bias: bool = False
    gate: int = 0
    indexer: Indexer | None = None
    extra: int = 0


@dataclass(frozen=True)
class CompressedAttention:
    """DeepSeek-V4 attention: one vector of ``head_dim`` is key and value of all heads.

    A query sees the last ``window`` tokens as they are. Where ``ratio`` is not 0 it also sees the context compressed,
    one entry for ``ratio`` tokens: the ``indexer.topk`` best entries of it, or all where there is no indexer.
    The output projection first maps each of ``out_groups`` groups of heads to ``out_rank`` values.
    """

    heads: int
    head_dim: int
    q_rank: int
    window: int
    ratio: int
    out_groups: int
    out_rank: int
    indexer: Indexer | None = None
    extra: int = 0


@dataclass(frozen=True)
class LinearAttention:
    """A recurrent mixer whose state does not grow with the context: gated delta net, KDA, Mamba-2.

    State per sequence: ``v_heads x k_dim x v_dim`` (for Mamba-2 ``heads x state x head_dim``, where ``k_heads`` is
    the number of groups) plus the convolution's last ``conv - 1`` inputs.
    ``bias``: of Mamba-2's projections. ``conv_bias``: of its convolution. ``gate_rank``: KDA's decay and output gate
    go through this many values; its output gate does not where ``full_gate``. ``extra``: norms, decays, time steps.
    """

    kind: Literal["gdn", "kda", "mamba2"]
    k_heads: int
    k_dim: int
    v_heads: int
    v_dim: int
    conv: int
    bias: bool = False
    conv_bias: bool = False
    gate_rank: int = 0
    full_gate: bool = False
    extra: int = 0

    @property
    def conv_channels(self) -> int:
        """Channels that pass the short convolution: q, k and v; for Mamba-2 x, B and C."""
        return 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim


@dataclass(frozen=True)
class Dense:
    """A feed-forward part: ``gated`` has three matrices (SwiGLU), else two. ``bias``: of all of them."""

    inter: int
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: ``topk`` of ``count`` experts for each token, and shared ones that every token meets.

    Attributes:
        inter: width of one expert. gated, bias: as in ``Dense``.
        shared_inter: width of all shared experts together, 0 for none. shared_bias: theirs.
        shared_gate: a gate of one output scales the shared experts.
        hidden: the width routed experts work at; 0 is the model's own. Where it is less (latent MoE), two matrices
            lead there and back.
        router_bias: the router's product has a bias. extra: correction biases, norms, scales.
        dense: a dense part that runs beside the experts in the same layer, None for none (Gemma 4).
    """

    count: int
    topk: int
    inter: int
    gated: bool = True
    bias: bool = False
    shared_inter: int = 0
    shared_gate: bool = False
    shared_bias: bool = False
    hidden: int = 0
    router_bias: bool = False
    extra: int = 0
    dense: Dense | None = None


Mixer = Attention | LatentAttention | CompressedAttention | LinearAttention
FeedForward = Dense | Experts


@dataclass(frozen=True)
class Block:
    """``count`` equal layers: a mixer (or none), then a feed-forward part (or none).

    ``norms``: parameters of norms and scales. ``linears``: matrices beside the two parts, as of hyper-connections,
    per-layer embeddings, or the input of a multi-token-prediction block.
    """

    mixer: Mixer | None
    ffn: FeedForward | None
    count: int = 1
    norms: int = 0
    linears: tuple[Linear, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """Number formats (names of ``nearpeak.formats``) in which a checkpoint stores its parts.

    ``ffn`` holds dense feed-forward parts and shared experts. ``method``: the quantization method as the config names
    it, None where there is none.
    """

    attention: str = "bf16"
    ffn: str = "bf16"
    experts: str = "bf16"
    head: str = "bf16"
    kv: str = "bf16"
    method: str | None = None


@dataclass(frozen=True)
class Architecture:
    """A model.

    Attributes:
        name: the id it was read as. family: ``model_type`` of its config.
        blocks: kinds of equal layers, in the order in which a kind first appears.
        context: longest context in tokens that it was made for.
        tied: the output head is the embedding table.
        encoder: bidirectional attention, no cache, no head over the vocabulary.
        mtp: multi-token-prediction blocks beside the model, not run unless speculation is on.
        tower: parameters of a vision or audio tower, which text traffic does not run.
        tables: parameters of lookup tables beside the embedding: positions, token types, per-layer embeddings.
        linears: matrices outside the blocks and the head. extra: norms and the like outside the blocks.
    """

    name: str
    family: str
    hidden: int
    vocab: int
    blocks: tuple[Block, ...]
    context: int
    tied: bool = False
    encoder: bool = False
    head_bias: bool = False
    mtp: tuple[Block, ...] = ()
    tower: int = 0
    tables: int = 0
    linears: tuple[Linear, ...] = ()
    extra: int = 0
    checkpoint: Checkpoint = Checkpoint()

    @property
    def layers(self) -> int:
        """Number of layers."""
        return sum(b.count for b in self.blocks)
