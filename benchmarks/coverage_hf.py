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
    """The class of a model, its configuration, and what it takes: "text", "image" or "sound"."""

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
EAGER = (
    "BertModel", "DistilBertModel", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTModel", "WhisperForAudioClassification",
)  # fmt: skip
MODELS = (*(recipe.model for recipe in RECIPES), *(f"{name}/eager" for name in EAGER))


def model(name: str) -> tuple[nn.Module, Inputs]:
    """A model by its class's name, and its inputs by keyword."""
    wanted, _, attention = name.partition("/")
    recipe = next(recipe for recipe in RECIPES if recipe.model == wanted)
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


INPUTS = {"text": text, "image": image, "sound": sound}
