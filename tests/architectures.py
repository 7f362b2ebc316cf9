"""Tiny random models of many architectures, each with a batch it can be trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import nn

IDS = {"input_ids": torch.arange(2, 14).view(2, 6), "labels": torch.arange(3, 15).view(2, 6)}
CLASSES = {"input_ids": IDS["input_ids"], "labels": torch.tensor([0, 1])}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin(), "labels": CLASSES["labels"]}
SEQ2SEQ = {"input_ids": IDS["input_ids"], "labels": IDS["labels"]}
TEXT = dict(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=1,
)  # fmt: skip
GROUPED = dict(**TEXT, num_key_value_heads=1, head_dim=8)
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32)

Case = tuple[Callable[[], nn.Module], dict[str, torch.Tensor]]


def _lm(config: Any) -> Case:
    return lambda: t.AutoModelForCausalLM.from_config(copy.deepcopy(config)), IDS


def _classifier(config: Any) -> Case:
    return lambda: t.AutoModelForSequenceClassification.from_config(copy.deepcopy(config)), CLASSES


def _masked(config: Any) -> Case:
    return lambda: t.AutoModelForMaskedLM.from_config(copy.deepcopy(config)), IDS


def _images(config: Any) -> Case:
    return lambda: t.AutoModelForImageClassification.from_config(copy.deepcopy(config)), IMAGES


def _clip() -> Case:
    text = dict(TEXT, num_hidden_layers=1)
    vision = dict(VISION, patch_size=16, num_hidden_layers=1)
    config = t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    batch = {"input_ids": IDS["input_ids"], "pixel_values": IMAGES["pixel_values"], "return_loss": True}
    return lambda: t.CLIPModel(copy.deepcopy(config)), batch  # type: ignore[return-value]


def _whisper() -> Case:
    config = t.WhisperConfig(
        vocab_size=32, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=10,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    batch = {"input_features": torch.linspace(-1, 1, 2 * 8 * 20).view(2, 8, 20).sin(), "labels": IDS["labels"]}
    return lambda: t.WhisperForConditionalGeneration(copy.deepcopy(config)), batch


def _wav2vec2() -> Case:
    config = t.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, apply_spec_augment=False,
    )  # fmt: skip
    batch = {"input_values": torch.linspace(0, 50, 2 * 200).view(2, 200).sin(), "labels": CLASSES["labels"]}
    return lambda: t.Wav2Vec2ForSequenceClassification(copy.deepcopy(config)), batch


def _t5() -> Case:
    config = t.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )  # fmt: skip
    return lambda: t.T5ForConditionalGeneration(copy.deepcopy(config)), SEQ2SEQ


def _bart() -> Case:
    config = t.BartConfig(
        vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=1,
    )  # fmt: skip
    return lambda: t.BartForConditionalGeneration(copy.deepcopy(config)), SEQ2SEQ


CASES: dict[str, Case] = {
    "gpt2": _lm(t.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "llama": _lm(t.LlamaConfig(**GROUPED)),
    "qwen3": _lm(t.Qwen3Config(**GROUPED)),
    "gemma3": _lm(t.Gemma3TextConfig(**GROUPED, sliding_window=4)),
    "mistral": _lm(t.MistralConfig(**GROUPED)),
    "phi": _lm(t.PhiConfig(**TEXT)),
    "gpt_neox": _lm(t.GPTNeoXConfig(**TEXT)),
    "opt": _lm(t.OPTConfig(vocab_size=32, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
                           max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=0)),
    "bert": _masked(t.BertConfig(**TEXT)),
    "roberta": _masked(t.RobertaConfig(**{**TEXT, "pad_token_id": 1})),
    "distilbert": _classifier(t.DistilBertConfig(vocab_size=32, dim=16, hidden_dim=24, n_layers=2, n_heads=2,
                                                 max_position_embeddings=32)),
    "electra": _masked(t.ElectraConfig(**TEXT, embedding_size=8)),
    "deberta_v2": _masked(t.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"],
                                            max_relative_positions=8)),
    "albert": _masked(t.AlbertConfig(**TEXT, embedding_size=8)),
    "modernbert": _masked(t.ModernBertConfig(**{**TEXT, "cls_token_id": 1, "sep_token_id": 1})),
    "t5": _t5(),
    "bart": _bart(),
    "whisper": _whisper(),
    "vit": _images(t.ViTConfig(**VISION, patch_size=8)),
    "swin": _images(t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
                                 window_size=4)),
    "convnext": _images(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)),
    "resnet": _images(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    "clip": _clip(),
    "wav2vec2": _wav2vec2(),
    "mixtral": _lm(t.MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1)),
    "gpt_oss": _lm(t.GptOssConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1, sliding_window=4)),
    "mamba": _lm(t.MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=4)),
    "qwen2_moe": _lm(t.Qwen2MoeConfig(**GROUPED, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
                                      shared_expert_intermediate_size=8)),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A fresh model, always the same, and its batch. Its config is its own: a test may choose another experts' pass."""
    make, batch = CASES[name]
    torch.manual_seed(0)
    return make(), batch
