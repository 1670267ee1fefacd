"""What the attributes of a transformers configuration are called, and how small each may become."""

from __future__ import annotations

import re

VOCABULARY, SPECIAL = 512, 300  # token ids from 256 on move to 300, 301, …

# (names, largest value); the first rule that fits an attribute counts
Rules = tuple[tuple[re.Pattern[str], int], ...]


def _rules(*lines: tuple[str, int]) -> Rules:
    return tuple((re.compile(names), value) for names, value in lines)


WIDTH_RULES = _rules(
    (r"(.*_)?(q|kv|o)_lora_rank", 16),
    (r"qk_head_dim", 32),
    (r"rotary_dim", 8),
    (r"mamba_(n_heads|num_heads)|n_mamba_heads", 8),
    (r"(.*_)?head_dim|d_kv|d_head|mamba_d_head|kv_channels|dim_head|attention_head_dim", 16),
    (r"(.*_)?(n_heads?|n_head|num_heads|attention_heads|num_attention_heads)|linear_num_value_heads", 4),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|kv_n_heads|n_head_kv)|linear_num_key_heads", 2),
    (r"output_channels", 64),
    (r"mamba_d_ssm|attention_hidden_size", 128),
    (r"(mamba_d_state|ssm_state_size|state_size)", 16),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"n_groups|mamba_n_groups", 2),
    (r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|intermediate_dim)|d_ff|d_inner|dim_ff|dff|mlp_dim|n_inner"
     r"|dim_feedforward|intermediate_size_mlp", 128),
    (r"(.*_)?(hidden_size|hidden_dim)(_global)?|d_model|n_embd|embed_dim|embedding_size|dim|emb_dim|projection_(dim|size)"
     r"|hidden_size_per_layer_input|word_embed_proj_dim|pooler_output_size|project_dim|vision_output_dim", 64),
)  # fmt: skip
WORD_RULES = _rules(
    (r"(.*_)?vocab_size(_.*)?", VOCABULARY),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts", 2),
    (r"n_group|num_expert_group", 2),
    (r"topk_group", 1),
    (r"(.*_)?max_position_embeddings|n_positions|max_target_positions", 512),
    (r"max_source_positions", 100),
    (r"sliding_window(_size)?", 6),
    (r"index_topk", 4),
    (r"index_kpool", 2),
    (r"num_queries|num_denoising", 20),
    (r"(encoder_)?hash_byte_group_vocab|num_hash_buckets|ngram_vocab_size_base", 512),
)
LAYER_RULES = _rules(
    (r"num_kv_shared_layers", 0),
    (r"first_k_dense_replace|num_dense_layers|.*_offset", 1),
    (r".*(_period|_interval|_frequency|_sparse_step|_every_n_layers)", 2),
)
LAYER_COUNT = re.compile(
    r"n_layers?|num_layers|layers|depth|(.*_)?(encoder|decoder|hidden|adapter|attention|spatial|temporal|auxiliary)_layers"
    r"|max_window_layers|resampler_depth|num_(.*_)?(blocks|layers)_per_(stack|group)|num_blocks"
)
INDICES = re.compile(r".*(index|indexes|indices|idxs|_layers|layer_ids|_blocks|layers_indices)")
TOKEN = re.compile(r".*(_token_ids?|_token_index|_id|_ids)")
PLACEHOLDER = re.compile(r"(image|video|audio)_token_(id|index)")
GRID = re.compile(r"num_patches|num_position_embeddings|image_seq_length|num_image_tokens|position_embedding_size")
# a level with one of these has stages of several widths, which depend on one another
STAGES = re.compile(
    r"depths|hidden_sizes|embed_dims|block_configs|.*stage.*|.*_ratios|.*channels?|conv_dim|upsample_rates"
)

# these have sections of a rotary embedding in their code, where the configuration gives none
SECTIONED = re.compile(r"(qwen2_vl|qwen2_5|qwen3_vl|qwen3_5|qwen3_omni|qwen4|glm4v|glm_|ernie4_5_vl|paddleocr).*")
STAGE_NAMES = ("stage_names", "out_features", "out_indices", "_out_features")
