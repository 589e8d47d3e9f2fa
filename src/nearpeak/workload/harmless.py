"""Config keys that change no matrix, no cache and no other shape, reviewed over the bundled configs.

Keys that could (``add_cross_attention``, ``pruned_heads``, ``is_encoder_decoder``) are not among them: an unread key is
no error only while its value is null, empty, zero or false, which is how configs say that a feature is off.
"""

import re

_DESCRIPTION = (
    "_name_or_path", "architectures", "auto_map", "dtype", "finetuning_task", "id2label", "keys_to_ignore_at_inference",
    "label2id", "problem_type", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version",
)  # fmt: skip

_TRAINING = (
    "aux_loss_alpha", "dropout", "embedding_dropout", "init_std", "gradient_checkpointing",
    "initializer_cutoff_factor", "initializer_factor",
    "initializer_range", "input_jitter_noise", "layerdrop", "rescale_prenorm_residual", "router_aux_loss_coef",
    "router_jitter_noise", "router_z_loss_coef", "seq_aux",
)  # fmt: skip

_NUMERICS = (
    "attention_value_scale", "attn_logit_softcapping", "attn_scale", "attn_temperature_tuning", "embedding_multiplier",
    "attention_multiplier", "final_logit_softcapping", "floor_scale", "gate_lower_bound", "hc_eps",
    "hc_sinkhorn_iters", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "logit_scale", "logits_scaling",
    "mamba_ssm_cache_dtype", "mamba_ssm_dtype", "moe_router_dtype", "norm_eps", "norm_epsilon", "pretraining_tp",
    "projector_ln_eps", "query_pre_attn_scalar", "residual_in_fp32", "residual_multiplier", "rms_norm_eps",
    "router_dtype", "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "reorder_and_upcast_attn",
    "time_step_floor", "time_step_limit", "time_step_max", "time_step_min", "scale_fmt", "attn_softmax_in_fp32",
)  # fmt: skip

_ACTIVATIONS = (
    "activation", "activation_func", "activation_function", "activation_situ_beta", "activation_situ_linear_beta",
    "hidden_act", "hidden_activation", "mamba_hidden_act", "mlp_hidden_act", "projector_hidden_act", "swiglu_alpha",
    "swiglu_limit",
    "swiglu_limits", "swiglu_limits_shared",
)  # fmt: skip

_ROUTING = (
    "moe_renormalize", "moe_router_activation_func", "moe_router_scaling_factor", "n_group", "norm_topk_prob",
    "num_expert_group", "routed_scaling_factor", "scoring_func", "topk_group", "use_grouped_topk",
)  # fmt: skip

_POSITIONS = (
    "compress_rope_theta", "default_theta", "global_rope_theta", "initial_context_length", "local_rope_theta",
    "original_max_position_embeddings", "partial_rotary_factor", "partial_rotary_factors", "rope_interleave",
    "rope_local_base_freq", "rope_mode", "rope_parameters", "rope_pct", "rope_scaling", "rope_theta", "rope_type",
    "rotary_base", "rotary_dim", "rotary_emb_base", "rotary_pct", "swa_rope_theta", "use_mrope",
)  # fmt: skip

_RUNNING = (
    "_attn_implementation", "_attn_implementation_autoset", "chunk_size", "chunk_size_feed_forward", "ep_size",
    "mamba_chunk_size", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
    "slow_but_exact", "torchscript", "use_bfloat16", "use_cache", "use_mamba_kernels", "image_size", "ignore_index",
    "image_placeholder",
)  # fmt: skip

_DECODING = (
    "diversity_penalty", "do_sample", "early_stopping", "length_penalty", "max_length", "num_beam_groups", "num_beams",
    "num_return_sequences", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "temperature",
    "top_k", "top_p", "typical_p",
)  # fmt: skip

_HARMLESS = frozenset(
    _DESCRIPTION + _TRAINING + _NUMERICS + _ACTIVATIONS + _ROUTING + _POSITIONS + _RUNNING + _DECODING
)

_PATTERN = re.compile(r"(.*_token_(id|index)|.*_token_ids|.*_(dropout|pdrop|dropout_prob)|summary_.*|classifier_.*)$")
"""Token ids, dropout, and the settings of heads that a language model does not have."""


def is_harmless(key: str) -> bool:
    """Whether a config key is known to change no shape."""
    return key in _HARMLESS or _PATTERN.match(key) is not None
