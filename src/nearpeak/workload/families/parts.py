"""What readers of families share: merging equal layers, heads, windows, feed-forward parts."""

from collections.abc import Sequence
from dataclasses import replace

from nearpeak.workload.architecture import Attention, Block, Dense, Experts, Indexer
from nearpeak.workload.fields import Fields


def merge(layers: Sequence[Block]) -> tuple[Block, ...]:
    """Equal layers put together, in the order in which a kind first appears."""
    counts: dict[Block, int] = {}
    for layer in layers:
        one = replace(layer, count=1)
        counts[one] = counts.get(one, 0) + layer.count
    return tuple(replace(kind, count=count) for kind, count in counts.items())


def head_shape(f: Fields, hidden: int, prefix: str = "") -> tuple[int, int, int]:
    """Heads, key-value heads (as many where absent), and width of a head (``hidden / heads`` where absent).

    Raises:
        UsageError: heads do not divide into groups, or ``hidden`` not into heads.
    """
    heads = f.integer(f"{prefix}num_attention_heads")
    kv_heads = f.integer(f"{prefix}num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise f.error(f"{heads} attention heads cannot share {kv_heads} key-value heads equally")
    if not f.has(f"{prefix}head_dim") and hidden % heads:
        raise f.error(f"hidden_size {hidden} is not a multiple of {heads} heads, and there is no head_dim")
    return heads, kv_heads, f.integer(f"{prefix}head_dim", default=hidden // heads)


def layer_windows(f: Fields, layers: int, pattern: int = 0) -> list[int]:
    """The sliding window of each layer, 0 for none, from ``layer_types`` and ``sliding_window``.

    ``pattern``: where ``layer_types`` is absent, every pattern-th layer is global and the others slide; 0 where the
    family then has no sliding layer, 1 where all slide if there is a window.
    """
    kinds = f.per_layer("layer_types", layers, ("full_attention", "sliding_attention"))
    window = f.integer("sliding_window", default=0, least=0)
    if kinds is None:
        if pattern == 1:
            return [window] * layers
        kinds = ["sliding_attention" if pattern and (i + 1) % pattern else "full_attention" for i in range(layers)]
    if "sliding_attention" in kinds and not window:
        raise f.error("layer_types has sliding_attention, but sliding_window has no value")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def head_norms(attention: Attention) -> Attention:
    """The same with a norm over each head of q and of k."""
    return replace(attention, extra=attention.extra + 2 * attention.head_dim)


def latent_indexer(f: Fields, layers: int) -> list[Indexer | None]:
    """DeepSeek's sparse attention layer by layer. A "shared" layer reuses the choice of the one before (GLM-5.2)."""
    own = Indexer(f.integer("index_n_heads"), f.integer("index_head_dim"), f.integer("index_topk"))
    kinds = f.per_layer("indexer_types", layers, ("full", "shared"))
    if kinds is None:
        f.choice("index_topk_pattern", (None,))
        f.choice("index_topk_freq", (1,), 1)
        kinds = ["full"] * layers
    elif kinds[0] == "shared":
        raise f.error("indexer_types begins with 'shared': the first layer has none to share")
    # ``indexer_types`` says what the next three once chose; they are how the list was written down first.
    f.ignore("index_topk_freq", "index_topk_pattern", "index_skip_topk_offset")
    return [own if kind == "full" else Indexer(0, 0, own.topk) for kind in kinds]


def indexer_vectors(indexer: Indexer | None) -> int:
    """Parameters of the layer norm over an index key: weight and bias."""
    return 2 * indexer.head_dim if indexer else 0


def deepseek_experts(f: Fields) -> Experts:
    """Routed and shared experts under DeepSeek's field names; the routers' correction bias is stored with them."""
    inter = f.integer("moe_intermediate_size")
    count = f.integer("n_routed_experts", "num_experts", "num_local_experts")
    usual = "greedy" if f.family == "deepseek_v2" else "noaux_tc"
    bias = f.choice("topk_method", ("noaux_tc", "greedy", "group_limited_greedy"), usual) == "noaux_tc"
    topk = f.integer("num_experts_per_tok")
    if "n_shared_experts" not in f.config:  # published code differs in what it then takes
        raise f.error("needs n_shared_experts (0 or null for none)")
    if topk > count:
        raise f.error(f"num_experts_per_tok = {topk} of only {count} experts")
    return Experts(
        count=count,
        topk=topk,
        inter=inter,
        shared_inter=inter * f.integer("n_shared_experts", default=0, least=0),
        extra=count if bias else 0,
    )


def dense_first(f: Fields, layers: int) -> list[bool]:
    """Which layers have experts: all after ``first_k_dense_replace``, or as ``mlp_layer_types`` says."""
    first = f.integer("first_k_dense_replace", default=0, least=0)
    f.choice("moe_layer_freq", (1,), 1)
    if first > layers:
        raise f.error(f"first_k_dense_replace = {first} of only {layers} layers")
    kinds = f.per_layer("mlp_layer_types", layers, ("dense", "sparse"))
    sparse = [i >= first for i in range(layers)]
    if kinds is not None and f.has("first_k_dense_replace") and [k == "sparse" for k in kinds] != sparse:
        raise f.error(f"mlp_layer_types contradicts first_k_dense_replace = {first}")
    return sparse if kinds is None else [k == "sparse" for k in kinds]


def silu_dense(f: Fields, key: str = "intermediate_size") -> Dense:
    """A gated feed-forward part without biases."""
    return Dense(f.integer(key))
