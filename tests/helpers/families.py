"""Tiny random causal LMs of the families that people train, in the words of their configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from epistill.rollouts.model import LanguageModel

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
LINEAR = {
    "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
SSM = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
# Family -> what its configuration needs beside SIZES. Windows are short so that they matter.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "qwen3_next": {**LINEAR, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
                   "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 2, 3]},
    "qwen3_5_text": LINEAR,
    "mistral": {"sliding_window": 5},
    "ministral": {"sliding_window": 5, "head_dim": 8},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gemma2": {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 0.5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5},
    "phi3": {"sliding_window": 5},
    "olmo2": {},
    "olmo3": {"sliding_window": 5},
    "smollm3": {},
    "granite": {"logits_scaling": 4.0},
    "granitemoehybrid": {**SSM, "logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1,
                         "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 5},
    "deepseek_v3": {**LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                    "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    "glm4": {"head_dim": 8},
    "glm4_moe": {"head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                 "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "stablelm": {},
    "starcoder2": {"sliding_window": 5},
    "exaone4": {"sliding_window": 5},
    "ernie4_5": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "minimax": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 4,
                "layer_types": ["linear_attention", "full_attention"] * 2},
    "nemotron": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "jamba": {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "bamba": {**SSM, "attn_layer_indices": [1, 3]},
    "falcon_h1": {"lm_head_multiplier": 0.25, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16,
                  "mamba_d_state": 8, "mamba_n_groups": 1, "head_dim": 8, "mamba_chunk_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "chunk_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "hyperclovax": {"logits_scaling": 0.25},
    "nanochat": {"final_logit_softcapping": 0.5},
}  # fmt: skip


def tiny_model(family: str, tokenizer: Any, **changes: Any) -> LanguageModel:
    """A network of a family with large random weights, so that every part of it shows."""
    sizes = {**SIZES, "vocab_size": len(tokenizer), **FAMILIES[family], **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes)
    network = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return LanguageModel(network, tokenizer, family)
