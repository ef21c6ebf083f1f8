"""Models of transformers from small configurations, so that nothing is fetched and a row takes seconds.

The widths are small, the structure is the library's own: heads, grouped queries, relative positions, tied embeddings.
``NAME/eager`` is the same model with the attention written out instead of the fused one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from common import MissingError
from torch import nn

from surgeon import Inputs

try:
    import transformers
except ImportError as reason:
    raise MissingError(f"transformers isn't installed: {reason}") from reason

Kwargs = dict[str, Any]
WORDS, TOKENS = 199, 24  # vocabulary; length of a text
SIDE = 64  # of an image
MELS, FRAMES = 80, 64  # mel bins and frames of a sound
SAMPLES = 4000  # of a sound as it is

SPECIAL: Kwargs = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER: Kwargs = {
    "vocab_size": WORDS, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 256,
}  # fmt: skip
DECODER: Kwargs = {**ENCODER, "num_hidden_layers": 4, "num_key_value_heads": 2}
VISION: Kwargs = {**ENCODER, "image_size": SIDE, "patch_size": 8}
VISION.pop("vocab_size")
STAGES: Kwargs = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]}


@dataclass(frozen=True)
class Recipe:
    """The class of a model, its configuration, and what it takes: one of ``INPUTS``."""

    model: str
    config: str
    takes: str
    kwargs: Kwargs = field(default_factory=dict)
    call: Kwargs = field(default_factory=dict)


CACHED: Kwargs = {"use_cache": False}
RECIPES = (
    Recipe("BertModel", "BertConfig", "text", ENCODER),
    Recipe("BertForSequenceClassification", "BertConfig", "text", ENCODER),
    Recipe("BertForMaskedLM", "BertConfig", "text", ENCODER),
    Recipe("RobertaModel", "RobertaConfig", "text", ENCODER),
    Recipe("ElectraModel", "ElectraConfig", "text", {**ENCODER, "embedding_size": 64}),
    Recipe("AlbertModel", "AlbertConfig", "text", {**ENCODER, "embedding_size": 64}),
    Recipe("DistilBertModel", "DistilBertConfig", "text",
           {"vocab_size": WORDS, "dim": 128, "n_layers": 3, "n_heads": 8, "hidden_dim": 256}),
    Recipe("DistilBertForSequenceClassification", "DistilBertConfig", "text",
           {"vocab_size": WORDS, "dim": 128, "n_layers": 3, "n_heads": 8, "hidden_dim": 256}),
    Recipe("GPT2LMHeadModel", "GPT2Config", "text",
           {"vocab_size": WORDS, "n_embd": 128, "n_layer": 3, "n_head": 8, **SPECIAL}, CACHED),
    Recipe("LlamaForCausalLM", "LlamaConfig", "text", DECODER, CACHED),
    Recipe("MistralForCausalLM", "MistralConfig", "text", DECODER, CACHED),
    Recipe("Qwen2ForCausalLM", "Qwen2Config", "text", DECODER, CACHED),
    Recipe("Qwen3ForCausalLM", "Qwen3Config", "text", {**DECODER, "head_dim": 16}, CACHED),
    Recipe("T5EncoderModel", "T5Config", "text",
           {"vocab_size": WORDS, "d_model": 128, "d_kv": 16, "d_ff": 256, "num_layers": 3, "num_heads": 8}),
    Recipe("WhisperForAudioClassification", "WhisperConfig", "sound",
           {"vocab_size": WORDS, "d_model": 128, "encoder_layers": 3, "encoder_attention_heads": 8,
            "encoder_ffn_dim": 256, "decoder_attention_heads": 8, "max_source_positions": FRAMES // 2,
            "num_mel_bins": MELS, **SPECIAL, "decoder_start_token_id": 1}),
    Recipe("ViTModel", "ViTConfig", "image", VISION),
    Recipe("ViTForImageClassification", "ViTConfig", "image", VISION),
    Recipe("DeiTModel", "DeiTConfig", "image", VISION),
    Recipe("Dinov2Model", "Dinov2Config", "image", VISION),
    Recipe("BeitModel", "BeitConfig", "image", {**VISION, "use_relative_position_bias": True}),
    Recipe("SwinForImageClassification", "SwinConfig", "image",
           {"image_size": SIDE, "patch_size": 2, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8],
            "window_size": 4}),
    Recipe("ConvNextForImageClassification", "ConvNextConfig", "image", STAGES),
    Recipe("ResNetForImageClassification", "ResNetConfig", "image",
           {"embedding_size": 16, "depths": [1, 1, 2, 1], "hidden_sizes": [32, 64, 96, 128]}),
    Recipe("SegformerForSemanticSegmentation", "SegformerConfig", "image",
           {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 64, 96], "num_attention_heads": [1, 2, 4, 6],
            "decoder_hidden_size": 64}),
)  # fmt: skip
SMALL: Kwargs = {
    "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, **SPECIAL,
}  # fmt: skip
EXPERTS: Kwargs = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}
#: Experts of which some are everybody's, behind one dense layer.
SHARED: Kwargs = {
    **SMALL, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
#: Keys and values through a narrow layer (multi-head latent attention).
LATENT: Kwargs = {
    **SHARED, "kv_lora_rank": 24, "q_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4,
}  # fmt: skip
#: Layers with a state in place of attention.
MAMBA: Kwargs = {
    **SMALL, "num_hidden_layers": 3, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 12, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip
PATCHES: Kwargs = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8,
}  # fmt: skip
NEWER = (
    Recipe("Llama4ForCausalLM", "Llama4TextConfig", "text",
           {**SMALL, "head_dim": 16, "intermediate_size_mlp": 160, "num_local_experts": 4, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2, "attention_chunk_size": 32, "max_position_embeddings": 64}, CACHED),
    Recipe("Qwen3NextForCausalLM", "Qwen3NextConfig", "text",
           {**EXPERTS, "head_dim": 16, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "moe_intermediate_size": 48, "shared_expert_intermediate_size": 56}, CACHED),
    Recipe("Gemma3nForCausalLM", "Gemma3nTextConfig", "text",
           {**SMALL, "head_dim": 16, "vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 24,
            "intermediate_size": [128] * 4, "num_kv_shared_layers": 2, "laurel_rank": 12, "altup_num_inputs": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4},
           CACHED),
    Recipe("Glm4MoeForCausalLM", "Glm4MoeConfig", "text", {**SHARED, "head_dim": 16}, CACHED),
    Recipe("DeepseekV2ForCausalLM", "DeepseekV2Config", "text", LATENT, CACHED),
    Recipe("DeepseekV3ForCausalLM", "DeepseekV3Config", "text", LATENT, CACHED),
    Recipe("Cohere2ForCausalLM", "Cohere2Config", "text", {**SMALL, "sliding_window": 16}, CACHED),
    Recipe("Olmo2ForCausalLM", "Olmo2Config", "text", SMALL, CACHED),
    Recipe("OlmoeForCausalLM", "OlmoeConfig", "text", EXPERTS, CACHED),
    Recipe("JetMoeForCausalLM", "JetMoeConfig", "text",
           {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16}, CACHED),
    Recipe("PersimmonForCausalLM", "PersimmonConfig", "text", {**SMALL, "num_key_value_heads": 4}, CACHED),
    Recipe("StableLmForCausalLM", "StableLmConfig", "text", SMALL, CACHED),
    Recipe("NemotronForCausalLM", "NemotronConfig", "text", SMALL, CACHED),
    Recipe("SmolLM3ForCausalLM", "SmolLM3Config", "text", SMALL, CACHED),
    Recipe("Phi3ForCausalLM", "Phi3Config", "text", SMALL, CACHED),
    Recipe("MixtralForCausalLM", "MixtralConfig", "text", {**SMALL, "num_local_experts": 4}, CACHED),
    Recipe("Mamba2ForCausalLM", "Mamba2Config", "text",
           {**SMALL, "num_heads": 8, "head_dim": 16, "state_size": 12, "n_groups": 1, "expand": 2, "chunk_size": 8},
           CACHED),
    Recipe("FalconH1ForCausalLM", "FalconH1Config", "text", {**MAMBA, "head_dim": 16, "mamba_d_ssm": 128}, CACHED),
    Recipe("BambaForCausalLM", "BambaConfig", "text", {**MAMBA, "attn_layer_indices": [1], "mamba_expand": 2}, CACHED),
    Recipe("GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig", "text",
           {**MAMBA, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4, "num_experts_per_tok": 2,
            "shared_intermediate_size": 96, "mamba_expand": 2}, CACHED),
    Recipe("Zamba2ForCausalLM", "Zamba2Config", "text",
           {**SMALL, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_d_state": 12, "n_mamba_heads": 8,
            "mamba_headdim": 16, "mamba_ngroups": 1, "mamba_expand": 2, "chunk_size": 8, "num_mem_blocks": 1,
            "adapter_rank": 6, "num_key_value_heads": 4}, CACHED),
    Recipe("JambaForCausalLM", "JambaConfig", "text",
           {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 12, "mamba_dt_rank": 10}, CACHED),
    Recipe("ModernBertForMaskedLM", "ModernBertConfig", "text", {**SMALL, "local_attention": 8}),
    Recipe("HieraForImageClassification", "HieraConfig", "image",
           {"embed_dim": 32, "image_size": [SIDE, SIDE], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8],
            "mlp_ratio": 2.0}),
    Recipe("Dinov2ForImageClassification", "Dinov2Config", "image", {**PATCHES, "mlp_ratio": 2}),
    Recipe("DINOv3ViTModel", "DINOv3ViTConfig", "image", {**PATCHES, "intermediate_size": 128}),
    Recipe("DINOv3ConvNextModel", "DINOv3ConvNextConfig", "image", STAGES),
    Recipe("Wav2Vec2ForCTC", "Wav2Vec2Config", "wave",
           {**SMALL, "num_hidden_layers": 2, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2),
            "conv_kernel": (10, 3, 3), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
            "mask_time_prob": 0.0}),
    Recipe("MoonshineForConditionalGeneration", "MoonshineConfig", "wave",
           {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4},
           {**CACHED, "decoder_input_ids": torch.arange(5, 17)[None]}),
    Recipe("VitsModel", "VitsConfig", "words",
           {"vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 96,
            "flow_size": 48, "spectrogram_bins": 65, "prior_encoder_num_flows": 2, "wavenet_kernel_size": 3,
            "posterior_encoder_num_wavenet_layers": 2, "prior_encoder_num_wavenet_layers": 2,
            "upsample_initial_channel": 64, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8],
            "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]], "depth_separable_num_layers": 2,
            "duration_predictor_filter_channels": 48, "duration_predictor_num_flows": 2}),
)  # fmt: skip
EAGER = (
    "BertModel", "DistilBertModel", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTModel", "WhisperForAudioClassification",
)  # fmt: skip
KNOWN = {recipe.model: recipe for recipe in (*RECIPES, *NEWER)}
MODELS = (*KNOWN, *(f"{name}/eager" for name in EAGER))


def model(name: str) -> tuple[nn.Module, Inputs]:
    """A model by its class's name, and its inputs by keyword."""
    wanted, _, attention = name.partition("/")
    recipe = KNOWN[wanted]
    config = getattr(transformers, recipe.config)(**recipe.kwargs)
    if attention:
        config._attn_implementation = attention
    result: nn.Module = getattr(transformers, wanted)(config)
    return result, Inputs(kwargs={**INPUTS[recipe.takes](), **recipe.call})


def text() -> Kwargs:
    """One text of `TOKENS` words, all of them attended to."""
    words = torch.randint(5, WORDS, (1, TOKENS))
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def image() -> Kwargs:
    """One image."""
    return {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}


def sound() -> Kwargs:
    """One spectrogram."""
    return {"input_features": torch.randn(1, MELS, FRAMES)}


def wave() -> Kwargs:
    """One sound as it is."""
    return {"input_values": torch.randn(1, SAMPLES)}


def words() -> Kwargs:
    """One text of which all is read."""
    return {"input_ids": torch.randint(5, WORDS, (1, TOKENS))}


INPUTS = {"text": text, "image": image, "sound": sound, "wave": wave, "words": words}
