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
from transformers.models.bark.modeling_bark import BarkCausalModel
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.dbrx.modeling_dbrx import DbrxExperts
from transformers.models.evolla.modeling_evolla import EvollaSequenceCompressorAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.layoutlmv2.modeling_layoutlmv2 import LayoutLMv2SelfAttention
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.moonshine.modeling_moonshine import MoonshineDecoderMLP
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention
from transformers.models.sam.modeling_sam import SamVisionAttention
from transformers.models.zamba.modeling_zamba import ZambaMambaMixer
from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

from adafisher_hf.layers.fused import Fused, fused_parts, looks_fused, output_dim
from tests.architectures import CASES, GROUPED, TEXT, VISION, build

WIDTH = 16
EAGER = dict(attn_implementation="eager")  # its softmax over one token is exactly 1
EXPERTS = dict(
    hidden_size=WIDTH, intermediate_size=6, num_local_experts=2, num_experts_per_tok=2, experts_implementation="eager"
)  # fmt: skip
GPT = dict(vocab_size=32, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32)
CROSS = dict(GPT, add_cross_attention=True)
FALCON = dict(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
BERT = dict(TEXT, cls_token_id=1, sep_token_id=1)
DBRX = dict(
    vocab_size=32, d_model=32, n_heads=4, n_layers=2, max_seq_len=32, pad_token_id=0,
    attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4), ffn_config=dict(ffn_hidden_size=24, hidden_size=32),
)  # fmt: skip
BARK = dict(input_vocab_size=32, output_vocab_size=32, hidden_size=WIDTH, num_layers=2, num_heads=2, block_size=32)
LAYOUT = dict(
    hidden_size=WIDTH, num_attention_heads=2, has_relative_attention_bias=False, has_spatial_attention_bias=False
)
JETMOE = dict(EXPERTS, vocab_size=32, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8)
GRANITE = dict(
    TEXT, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=2, shared_intermediate_size=6
)  # fmt: skip
LATENT = dict(
    TEXT, num_key_value_heads=2, kv_lora_rank=6, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=5,
    first_k_dense_replace=2,
)  # fmt: skip
QWEN = dict(
    GROUPED, num_experts=2, num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=6,
)  # fmt: skip
QWEN_FULL = dict(QWEN, layer_types=["linear_attention", "full_attention"])
QWEN_LINEAR = dict(QWEN, layer_types=["full_attention", "linear_attention"])
STATES = dict(vocab_size=32, hidden_size=WIDTH, num_hidden_layers=2, state_size=4)
MAMBA = dict(STATES, time_step_rank=3)
MAMBA2 = dict(STATES, num_heads=4, head_dim=8, n_groups=2, chunk_size=4)
ZAMBA = dict(hidden_size=WIDTH, mamba_d_state=4, mamba_dt_rank=3)
ZAMBA2 = dict(hidden_size=WIDTH, mamba_d_state=4, n_mamba_heads=4, mamba_headdim=8, mamba_ngroups=2, chunk_size=4)
LFM2 = dict(TEXT, num_key_value_heads=1, layer_types=["full_attention", "conv"])
LIGHTNING = dict(GROUPED, layer_types=["linear_attention"] * 2)


def causal(config_class, settings, model_class=None):
    """A language model, and how it is run on so many tokens."""

    def make():
        config = config_class(**settings, **EAGER)
        return t.AutoModelForCausalLM.from_config(config) if model_class is None else model_class(config)

    return make, lambda model, tokens: model(input_ids=ids(tokens)).logits


def ids(tokens):
    return torch.arange(3, 3 + tokens)[None]


def vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def across(decoder, tokens):
    return decoder(input_ids=ids(2), encoder_hidden_states=vectors(1, tokens, WIDTH)).logits


def seen(attention, tokens):
    size = attention.head_dim
    at = dict(cu_seqlens=torch.tensor([0, tokens]), position_embeddings=(torch.ones(tokens, size),) * 2)
    return attention(vectors(tokens, WIDTH), **at)[None]


def compressed(attention, tokens):
    """The last of the tokens that it attends to is the one that attends."""
    return attention(vectors(1, tokens - 1, WIDTH), vectors(1, 1, WIDTH), torch.ones(1, tokens))


# What a part is: a query, a key, a value, a gate of the output.
SEES_ONE_TOKEN = "vg"
SEES_EARLIER_TOKENS = "kv"

ATTENTIONS = {
    "gpt2": ("c_attn", "qkv", *causal(t.GPT2Config, GPT)),
    "gpt2-cross": ("crossattention.c_attn", "kv", causal(t.GPT2Config, CROSS)[0], across),
    "openai-gpt": ("c_attn", "qkv", *causal(t.OpenAIGPTConfig, GPT)),
    "gpt_bigcode": ("c_attn", "qkv", *causal(t.GPTBigCodeConfig, GPT | {"multi_query": False})),
    "gpt_bigcode-mq": ("c_attn", "qkv", *causal(t.GPTBigCodeConfig, GPT | {"multi_query": True})),
    "bloom": ("query_key_value", "qkv", *causal(t.BloomConfig, FALCON)),
    "gpt_neox": ("query_key_value", "qkv", *causal(t.GPTNeoXConfig, TEXT)),
    "gpt_neox_japanese": ("query_key_value", "qkv", *causal(t.GPTNeoXJapaneseConfig, FALCON)),
    "persimmon": ("query_key_value", "qkv", *causal(t.PersimmonConfig, TEXT)),
    "falcon": ("query_key_value", "qkv", *causal(t.FalconConfig, FALCON | {"multi_query": False})),
    "falcon-mq": ("query_key_value", "qkv", *causal(t.FalconConfig, FALCON | {"multi_query": True})),
    "falcon-new": ("query_key_value", "qkv", *causal(
        t.FalconConfig, FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2})),
    "phi3": ("qkv_proj", "qkv", *causal(t.Phi3Config, TEXT | {"num_attention_heads": 4, "num_key_value_heads": 2})),
    "codegen": ("qkv_proj", "qvk", *causal(t.CodeGenConfig, GPT | {"n_embd": 32, "n_head": 4, "rotary_dim": 4})),
    "mpt": ("Wqkv", "qkv", *causal(t.MptConfig, dict(vocab_size=32, d_model=16, n_heads=2, n_layers=2))),
    "dbrx": ("Wqkv", "qkv", *causal(t.DbrxConfig, DBRX)),
    "modernbert": ("Wqkv", "qkv", *causal(t.ModernBertConfig, BERT, t.ModernBertForMaskedLM)),
    "deberta": ("in_proj", "qkv", *causal(t.DebertaConfig, TEXT, t.DebertaForMaskedLM)),
    "bark": ("att_proj", "qkv", *causal(t.BarkSemanticConfig, BARK, BarkCausalModel)),
    "jetmoe": ("kv_proj", "kv", *causal(t.JetMoeConfig, JETMOE)),
    "evolla": ("to_kv", "kv", lambda: EvollaSequenceCompressorAttention(WIDTH, 8, 2), compressed),
    "layoutlmv2": ("qkv_linear", "qkv", lambda: LayoutLMv2SelfAttention(t.LayoutLMv2Config(**LAYOUT)),
                   lambda attention, tokens: attention(vectors(1, tokens, WIDTH), torch.zeros(tokens))[0]),
    "deepseek_v3-b": ("kv_b_proj", "kv", *causal(t.DeepseekV3Config, LATENT)),
    "deepseek_v3-a": ("kv_a_proj_with_mqa", "vk", *causal(t.DeepseekV3Config, LATENT)),
    "qwen3_next-full": ("q_proj", "qg", *causal(t.Qwen3NextConfig, QWEN_FULL)),
    # Of one token nothing decays yet.
    "qwen3_next-linear": ("in_proj_ba", "vk", *causal(t.Qwen3NextConfig, QWEN_LINEAR)),
    "blip": ("qkv", "qkv", lambda: BlipAttention(t.BlipVisionConfig(**VISION, **EAGER)),
             lambda attention, tokens: attention(vectors(1, tokens, WIDTH))[0]),
    "sam": ("qkv", "qkv", lambda: SamVisionAttention(t.SamVisionConfig(**VISION, use_rel_pos=False), window_size=0),
            lambda attention, tokens: attention(vectors(1, tokens, 1, WIDTH))[0].flatten(1, 2)),
    "qwen2_vl": ("qkv", "qkv", lambda: VisionAttention(
        t.Qwen2VLConfig(vision_config=dict(embed_dim=WIDTH, num_heads=2, **EAGER)).vision_config), seen),
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


def mixed(layer, tokens):
    return layer(vectors(1, tokens, WIDTH))


def chosen(experts, tokens):
    """Every token by both experts."""
    x = vectors(tokens, WIDTH)
    return experts(x, torch.tensor([[0, 1]] * tokens), torch.full((tokens, 2), 0.5))


class SwiGLU(nn.Module):
    """DINOv2's, in transformers 5.2."""

    def __init__(self):
        super().__init__()
        self.weights_in = nn.Linear(WIDTH, 12)
        self.weights_out = nn.Linear(6, WIDTH)

    def forward(self, x):
        gate, up = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(nn.functional.silu(gate) * up)


EITHER = {0: [1], 1: [0]}  # of two factors

# Gate, x, B, C, Δ: where nothing goes through the state, x still goes past it.
PAST_THE_STATE = {0: [1, 2, 3, 4], 1: [0, 2, 3, 4], 2: [3, 4], 3: [2, 4]}


def each(count):
    """Of several factors, where one is zero all others lose their gradients."""
    return {i: [j for j in range(count) if j != i] for i in range(count)}


# Where a part is zero, which others lose their gradients.
PRODUCTS = {
    "phi3": ("gate_up_proj.weight", EITHER, *causal(t.Phi3Config, TEXT)),
    "glm": ("gate_up_proj.weight", EITHER, *causal(t.GlmConfig, GROUPED)),
    "glm4": ("gate_up_proj.weight", EITHER, *causal(t.Glm4Config, GROUPED)),
    "modernbert": ("Wi.weight", EITHER, *causal(t.ModernBertConfig, BERT, t.ModernBertForMaskedLM)),
    "granitemoeshared": ("input_linear.weight", EITHER, *causal(t.GraniteMoeSharedConfig, GRANITE)),
    "jetmoe": ("mlp.input_linear.weight", EITHER, *causal(t.JetMoeConfig, JETMOE)),
    "moonshine": ("fc1.weight", EITHER, lambda: MoonshineDecoderMLP(
        t.MoonshineConfig(hidden_size=WIDTH, intermediate_size=6), "silu"), mixed),
    "dinov2": ("weights_in.weight", EITHER, SwiGLU, mixed),
    "mixtral": ("gate_up_proj", EITHER, lambda: MixtralExperts(t.MixtralConfig(**EXPERTS)), chosen),
    # The other factor is up + 1.
    "gpt_oss": ("gate_up_proj", {0: [1]}, lambda: GptOssExperts(t.GptOssConfig(**EXPERTS)), chosen),
    "llama4": ("gate_up_proj", EITHER, lambda: Llama4TextExperts(t.Llama4TextConfig(**EXPERTS)),
               lambda experts, tokens: experts(vectors(2 * tokens, WIDTH))),
    "minimax": ("qkv_proj.weight", each(3), lambda: MiniMaxLightningAttention(t.MiniMaxConfig(**LIGHTNING), 0),
                lambda attention, tokens: attention(vectors(1, tokens, WIDTH), None, None)[0]),
    "mamba": ("in_proj.weight", EITHER, *causal(t.MambaConfig, MAMBA)),
    "mamba-x": ("x_proj.weight", {1: [0, 2], 2: [0, 1]}, *causal(t.MambaConfig, MAMBA)),
    "mamba2": ("in_proj.weight", PAST_THE_STATE, *causal(t.Mamba2Config, MAMBA2)),
    "zamba2": ("in_proj.weight", PAST_THE_STATE, lambda: Zamba2MambaMixer(t.Zamba2Config(**ZAMBA2), 0), mixed),
    "zamba": ("in_proj.weight", EITHER, lambda: ZambaMambaMixer(t.ZambaConfig(**ZAMBA), 0), mixed),
    "lfm2": ("in_proj.weight", each(3), *causal(t.Lfm2Config, LFM2)),
    "qwen3_next": ("in_proj_qkvz.weight", each(4), *causal(t.Qwen3NextConfig, QWEN_LINEAR)),
    "qwen3_5": ("in_proj_qkv.weight", each(3), *causal(t.Qwen3_5TextConfig, QWEN_LINEAR)),
}  # fmt: skip


def owner_of(model, parameter_name):
    """The last module with a parameter of that name."""
    name = [n for n, _ in model.named_parameters() if f".{n}".endswith(f".{parameter_name}")][-1]
    module_name, _, attribute = name.rpartition(".")
    return module_name, model.get_submodule(module_name), attribute


def with_part_zero(fused, parameter, dim, part):
    parts = fused.split(parameter.detach(), dim)
    return fused.join([torch.zeros_like(p) if i == part else p for i, p in enumerate(parts)], dim)


@pytest.mark.parametrize("name", PRODUCTS)
def test_factors_are_told_apart(name):
    parameter_name, without, make, run = PRODUCTS[name]
    model = randomised(make)
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv1d) and m.bias is not None):
        nn.init.zeros_(convolution.bias)  # of zeros it shall make zeros
    module_name, module, attribute = owner_of(model, parameter_name)
    fused = fused_parts(model, module_name, module, attribute)
    assert fused is not None and len(fused.sizes) > max(without)
    biases = [n for n, _ in module.named_parameters(recurse=False) if n in ("bias", f"{attribute}_bias")]
    dim, weight, kept = output_dim(module, attribute), getattr(module, attribute), copy.deepcopy(model.state_dict())
    for part, others in without.items():
        model.load_state_dict(kept)
        model.zero_grad()
        for bias in biases:
            assert fused_parts(model, module_name, module, bias) == fused
            getattr(module, bias).data.copy_(with_part_zero(fused, getattr(module, bias), -1, part))
        weight.data.copy_(with_part_zero(fused, weight, dim, part))
        weighed(run(model, 3)).backward()
        moved = [zero_or_everywhere(x.movedim(dim, -1).flatten(0, -2)) for x in fused.split(weight.grad, dim)]
        assert moved[part]
        assert [i for i, x in enumerate(moved) if not x] == others


@pytest.mark.parametrize("place", [0, 1])
def test_multihead_attention(place):
    """Where the queries, or the keys, are computed from zeros, their weights get no gradient."""
    attention = randomised(lambda: nn.MultiheadAttention(WIDTH, 2))
    fused = fused_parts(nn.Sequential(attention), "0", attention, "in_proj_weight")
    assert fused == fused_parts(attention, "", attention, "in_proj_bias") == Fused(1, (WIDTH,) * 3)
    inputs = [torch.zeros(4, WIDTH) if i == place else vectors(4, WIDTH) for i in range(3)]
    weighed(attention(*inputs)[0]).backward()
    moved = [zero_or_everywhere(x.T) for x in fused.split(attention.in_proj_weight.grad, -2)]
    assert moved == [i != place for i in range(3)]


@pytest.mark.parametrize("attribute", ["w1", "v1", "w2"])
def test_experts_under_one_another(attribute):
    """A token that goes to one expert of DBRX moves the weights of this one."""
    config = t.DbrxConfig(d_model=WIDTH, ffn_config=dict(ffn_hidden_size=6, moe_num_experts=3)).ffn_config
    model = randomised(lambda: DbrxExperts(config))
    fused = fused_parts(model, "mlp", model.mlp, attribute)
    assert fused == Fused(1, (6, 6, 6))
    for expert in range(3):
        model.zero_grad()
        weighed(model(vectors(1, WIDTH), torch.tensor([[expert]]), torch.ones(1, 1))).backward()
        moved = [zero_or_everywhere(x.T) for x in fused.split(getattr(model.mlp, attribute).grad, -2)]
        assert moved == [i == expert for i in range(3)]


@given(
    groups=st.integers(1, 4), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), stack=st.integers(1, 3),
    other=st.integers(1, 3), dim=st.sampled_from([-1, -2]),
)  # fmt: skip
def test_split_and_join_are_inverses(groups, sizes, stack, other, dim):
    fused = Fused(groups, tuple(sizes))
    shape = (stack, fused.length, other) if dim == -2 else (stack, other, fused.length)
    x = torch.arange(stack * other * fused.length).view(shape)
    parts = fused.split(x, dim)
    assert [part.shape[dim] for part in parts] == [groups * size for size in sizes]
    assert torch.equal(fused.join(parts, dim), x)
    for part in parts:
        assert (part.diff(dim=dim) > 0).all()
    if groups == 1:
        assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in parts)


def test_groups_are_dealt_out():
    parts = Fused(2, (1, 2)).split(torch.tensor([[[0, 1, 2, 10, 11, 12]]]), -1)
    assert [part.flatten().tolist() for part in parts] == [[0, 10], [1, 2, 11, 12]]


FOUND = {
    "gpt2": {"c_attn"},
    "gpt_neox": {"query_key_value"},
    "modernbert": {"Wqkv", "Wi"},
    "mixtral": {"gate_up_proj"},
    "gpt_oss": {"gate_up_proj", "gate_up_proj_bias"},
    "qwen2_moe": {"gate_up_proj"},
    "mamba": {"in_proj", "x_proj"},
}


@pytest.mark.parametrize("name", CASES)
def test_everything_else_is_one_matrix(name):
    model, _ = build(name)
    found, unknown = set(), set()
    for parameter_name, _ in model.named_parameters():
        module_name, _, attribute = parameter_name.rpartition(".")
        called = module_name.rpartition(".")[2] if attribute in ("weight", "bias") else attribute
        if fused_parts(model, module_name, model.get_submodule(module_name), attribute):
            found.add(called)
        elif looks_fused(module_name, attribute):
            unknown.add(called)
    assert found == FOUND.get(name, set())
    assert not unknown


class Attention(nn.Module):
    """Of which no rule knows anything."""

    def __init__(self, name, length=48):
        super().__init__()
        setattr(self, name, nn.Linear(WIDTH, length))


class BloomAttention(Attention):
    """It does not say how many heads it has."""


class GPTNeoXAttention(Attention):
    num_attention_heads = 5  # not of 48 outputs


@pytest.mark.parametrize(
    "attention",
    [
        Attention("W_pack"), Attention("wqkv"), Attention("query_key_value"), Attention("kv_b_proj"),
        Attention("in_proj_qkvz"), Attention("qkv", 49), BloomAttention("query_key_value"),
        GPTNeoXAttention("query_key_value"),
    ],
)  # fmt: skip
def test_unknown_projections_look_fused(attention):
    (name, module), = attention.named_children()  # fmt: skip
    for attribute in ("weight", "bias"):
        assert fused_parts(attention, name, module, attribute) is None
        assert looks_fused(name, attribute)


@pytest.mark.parametrize("name", ["q_proj", "fc1", "in_proj", "x_proj", "Wi", "w1", "dense", "kv_norm"])
def test_ordinary_projections_do_not(name):
    attention = Attention(name)
    assert fused_parts(attention, name, attention.get_submodule(name), "weight") is None
    assert not looks_fused(name, "weight")


def test_kernels_are_left_alone():
    attention = Attention("qkv")
    attention.qkv = nn.Conv2d(WIDTH, 48, 1)
    assert fused_parts(attention, "qkv", attention.qkv, "weight") is None


def test_wrappers_do_not_hide_a_projection():
    peft = pytest.importorskip("peft")
    model, _ = build("gpt2")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    wrapped = nn.ModuleDict({"_orig_mod": nn.ModuleDict({"module": adapted})})
    name, module = last(wrapped, "c_attn.base_layer")
    assert fused_parts(wrapped, name, module, "weight") == Fused(1, (WIDTH,) * 3)
    assert looks_fused(name, "weight")
    name, module = last(wrapped, "lora_A.default")
    assert fused_parts(wrapped, name, module, "weight") is None
