"""Fused projections split where the model itself splits them.

The oracle is autograd, which knows nothing of any layout. In an attention, with δ for the gradient at the output of the
projection: a single token is all there is to attend to, so that queries and keys get no δ; and where only the last
output is read, earlier tokens get none as queries. Of parts that are multiplied, where one is zero the others get no
gradient.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as t
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.bark.modeling_bark import BarkCausalModel
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.dbrx.modeling_dbrx import DbrxExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.moonshine.modeling_moonshine import MoonshineDecoderMLP
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention
from transformers.models.sam.modeling_sam import SamVisionAttention

from adafisher_hf.layers.fused import Fused, fused_parts, looks_fused, output_dim
from tests.architectures import CASES, GROUPED, TEXT, VISION, build

WIDTH = 16
EAGER = dict(attn_implementation="eager")
MOE = dict(num_experts=2, num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8)
LINEAR_ATTENTION = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=6
)  # fmt: skip
LATENT = dict(
    TEXT, kv_lora_rank=6, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=5, first_k_dense_replace=2
)  # fmt: skip
FALCON = dict(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
STATES = dict(vocab_size=32, hidden_size=WIDTH, num_hidden_layers=2, use_conv_bias=False)
GPT = dict(vocab_size=32, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32)


def causal(config, model_class=None):
    """A model that is run on so many tokens."""

    def make():
        config_of_its_own = copy.deepcopy(config)
        if model_class is not None:
            return model_class._from_config(config_of_its_own, **EAGER)
        return t.AutoModelForCausalLM.from_config(config_of_its_own, **EAGER)

    return make, lambda model, tokens: model(input_ids=ids(tokens)).logits


def ids(tokens):
    return torch.arange(3, 3 + tokens)[None]


def vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def attended(cross_attending, tokens):
    return cross_attending(input_ids=ids(2), encoder_hidden_states=vectors(1, tokens, WIDTH)).logits


def seen(attention, tokens):
    size = attention.head_dim
    at = dict(cu_seqlens=torch.tensor([0, tokens]), position_embeddings=(torch.ones(tokens, size),) * 2)
    return attention(vectors(tokens, WIDTH), **at)[None]


def with_eager(config):
    config._attn_implementation = "eager"
    return config


# What a part is: a query, a key, a value, a gate of the output.
SEES_ONE_TOKEN = "vg"
SEES_EARLIER_TOKENS = "kv"

ATTENTIONS = {
    "gpt2": ("c_attn", "qkv", *causal(t.GPT2Config(**GPT))),
    "gpt2-cross": ("crossattention.c_attn", "kv", causal(t.GPT2Config(**GPT, add_cross_attention=True))[0], attended),
    "openai-gpt": ("c_attn", "qkv", *causal(t.OpenAIGPTConfig(**GPT))),
    "gpt_bigcode": ("c_attn", "qkv", *causal(t.GPTBigCodeConfig(**GPT, multi_query=False))),
    "gpt_bigcode-mq": ("c_attn", "qkv", *causal(t.GPTBigCodeConfig(**GPT, multi_query=True))),
    "bloom": ("query_key_value", "qkv", *causal(t.BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2))),
    "gpt_neox": ("query_key_value", "qkv", *causal(t.GPTNeoXConfig(**TEXT))),
    "gpt_neox_japanese": ("query_key_value", "qkv", *causal(
        t.GPTNeoXJapaneseConfig(**{**TEXT, "intermediate_multiple_size": 2}))),
    "persimmon": ("query_key_value", "qkv", *causal(t.PersimmonConfig(**TEXT))),
    "falcon-new": ("query_key_value", "qkv", *causal(
        t.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2))),
    "falcon-mq": ("query_key_value", "qkv", *causal(t.FalconConfig(**FALCON, multi_query=True))),
    "falcon": ("query_key_value", "qkv", *causal(t.FalconConfig(**FALCON, multi_query=False))),
    "phi3": ("qkv_proj", "qkv", *causal(t.Phi3Config(**{**TEXT, "num_attention_heads": 4}, num_key_value_heads=2))),
    "codegen": ("qkv_proj", "qvk", *causal(t.CodeGenConfig(**{**GPT, "n_embd": 32, "n_head": 4}, rotary_dim=4))),
    "mpt": ("Wqkv", "qkv", *causal(t.MptConfig(vocab_size=32, d_model=16, n_heads=2, n_layers=2, max_seq_len=32))),
    "dbrx": ("Wqkv", "qkv", *causal(t.DbrxConfig(
        vocab_size=32, d_model=32, n_heads=4, n_layers=2, max_seq_len=32, pad_token_id=0,
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0), ffn_config=dict(ffn_hidden_size=24, hidden_size=32)))),
    "modernbert": ("Wqkv", "qkv", *causal(
        t.ModernBertConfig(**{**TEXT, "cls_token_id": 1, "sep_token_id": 1}), t.ModernBertForMaskedLM)),
    "deberta": ("in_proj", "qkv", *causal(t.DebertaConfig(**TEXT), t.DebertaForMaskedLM)),
    "bark": ("att_proj", "qkv", *causal(t.BarkSemanticConfig(
        input_vocab_size=32, output_vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, block_size=32),
        BarkCausalModel)),
    "jetmoe": ("kv_proj", "kv", *causal(t.JetMoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8,
        num_local_experts=2, num_experts_per_tok=2))),
    "deepseek_v3-b": ("kv_b_proj", "kv", *causal(t.DeepseekV3Config(**LATENT))),
    "deepseek_v3-a": ("kv_a_proj_with_mqa", "vk", *causal(t.DeepseekV3Config(**LATENT))),
    "qwen3_next-full": ("q_proj", "qg", *causal(t.Qwen3NextConfig(
        **GROUPED, **MOE, **LINEAR_ATTENTION, layer_types=["linear_attention", "full_attention"]))),
    # Of one token nothing decays yet.
    "qwen3_next-gates": ("in_proj_ba", "vk", *causal(t.Qwen3NextConfig(
        **GROUPED, **MOE, **LINEAR_ATTENTION, layer_types=["full_attention", "linear_attention"]))),
    "blip": ("qkv", "qkv", lambda: BlipAttention(t.BlipVisionConfig(**VISION)),
             lambda attention, tokens: attention(vectors(1, tokens, WIDTH))[0]),
    "sam": ("qkv", "qkv", lambda: SamVisionAttention(t.SamVisionConfig(**VISION, use_rel_pos=False), window_size=0),
            lambda attention, tokens: attention(vectors(1, tokens, 1, WIDTH))[0].flatten(1, 2)),
    "qwen2_vl": ("qkv", "qkv", lambda: VisionAttention(with_eager(
        t.Qwen2VLConfig(vision_config=dict(embed_dim=WIDTH, num_heads=2)).vision_config)), seen),
}  # fmt: skip


def randomised(make):
    """A model whose every matrix and bias matters."""
    torch.manual_seed(0)
    model = make().float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


def last(model, suffix):
    """The last module of that name."""
    return [(name, module) for name, module in model.named_modules() if f".{name}".endswith(f".{suffix}")][-1]


def weighed(y):
    return (y * vectors(*y.shape)).sum()


def deltas(model, projection, run, tokens):
    """δ of the parts, where only the last output is read: (tokens, outputs)."""
    outputs = []

    def keep(module, args, output):
        output.retain_grad()
        outputs.append(output)

    handle = projection.register_forward_hook(keep)
    weighed(run(model, tokens)[:, -1]).backward()
    handle.remove()
    return outputs[0].grad.reshape(tokens, -1)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_queries_keys_and_values_are_told_apart(name):
    suffix, roles, make, run = ATTENTIONS[name]
    model = randomised(make)
    module_name, projection = last(model, suffix)
    fused = fused_parts(model, module_name, projection, "weight")
    assert fused is not None and len(fused.sizes) == len(roles)
    if projection.bias is not None:
        assert fused_parts(model, module_name, projection, "bias") == fused
    assert projection.weight.shape[output_dim(projection, "weight")] == fused.length

    one = fused.split(deltas(model, projection, run, 1), -1)
    earlier = fused.split(deltas(model, projection, run, 4)[:-1], -1)
    for role, of_one, of_earlier in zip(roles, one, earlier, strict=True):
        assert zero_or_everywhere(of_one) == (role in SEES_ONE_TOKEN)
        assert zero_or_everywhere(of_earlier) == (role in SEES_EARLIER_TOKENS)


def zero_or_everywhere(x):
    """False if all of (rows, outputs) is zero, True if no output is; half of each is an error."""
    found = x.abs().amax(0) > 0
    assert found.all() or not found.any()
    return bool(found.any())
