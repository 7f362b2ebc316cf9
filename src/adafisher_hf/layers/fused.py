"""Fused projections: several matrices that lie in one parameter, such as queries, keys and values in GPT-2's c_attn.

The registry is ``RULES``, by the name of the projection. A rule reads from the module that holds the projection how its
outputs are shared out, and answers None where that module is not of a kind it knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import is_conv1d


@dataclass(frozen=True)
class Fused:
    """How the outputs of a fused projection are shared out: ``groups`` × (sizes[0] + sizes[1] + ...) of them.

    Attributes:
        groups: 1 where the parts follow one another, the number of heads where every head has its own of each.
        sizes: how many outputs of every group belong to each part.
    """

    groups: int
    sizes: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.groups * sum(self.sizes)

    def split(self, x: Tensor, dim: int) -> list[Tensor]:
        """The parts of a tensor whose dimension ``dim``, -2 or -1, has ``length``; part j has groups · sizes[j] there.

        Their order within a part is kept. Without groups they are views.
        """
        parts = x.unflatten(dim, (self.groups, -1)).split(self.sizes, dim)
        return [part.flatten(dim - 1, dim) for part in parts]

    def join(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """The tensor that ``split`` gives these parts of."""
        grouped = [part.unflatten(dim, (self.groups, size)) for part, size in zip(parts, self.sizes, strict=True)]
        return torch.cat(grouped, dim).flatten(dim - 1, dim)


@dataclass(frozen=True)
class Projection:
    """What a rule sees of a projection.

    Attributes:
        holder: the module that uses it, an attention or a feed-forward layer.
        length: the number of its outputs.
    """

    holder: Any
    length: int

    def is_in(self, *classes: str) -> bool:
        """Whether the holder is of such a class; FSDP2 puts a prefix before the name."""
        return any(name in type(self.holder).__name__ for name in classes)

    def says(self, flag: str) -> bool:
        return bool(getattr(self.holder, flag, False))

    def size(self, *names: str) -> int:
        """The first of these numbers that the holder has, or else its config; 0 where both have none of them."""
        places = (self.holder, getattr(self.holder, "config", None))
        found = (getattr(place, name, None) for place in places for name in names)
        return next((size for size in found if isinstance(size, int)), 0)

    @property
    def heads(self) -> int:
        return self.size("num_heads", "num_attention_heads", "n_heads", "n_head")

    @property
    def key_value_heads(self) -> int:
        return self.size("num_key_value_heads", "num_kv_heads", "kv_heads")


Rule = Callable[[Projection], Fused | None]


def fused_parts(model: nn.Module, module_name: str, module: nn.Module, attribute: str) -> Fused | None:
    """How the parameter ``module.attribute`` splits; None where it is one matrix, or nobody knows how it splits.

    Args:
        module_name: of the module in ``model.named_modules()``.
    """
    rule = RULES.get(_name(module_name, attribute))
    length = _outputs(module, attribute) if rule is not None else 0
    if rule is None or not length:
        return None
    fused = rule(Projection(_holder(model, module_name, module, attribute), length))
    return fused if fused is not None and fused.length == length and len(fused.sizes) > 1 else None


def looks_fused(module_name: str, attribute: str) -> bool:
    """Whether a parameter is a fused projection by its name. Where it has no parts a report should say so."""
    return FUSED_NAMES.search(_name(module_name, attribute)) is not None


def output_dim(module: nn.Module, attribute: str) -> int:
    """The dimension of a fused parameter, seen as (stack, rows, columns), that its outputs lie along: -2 or -1."""
    if attribute.endswith("bias"):
        return -2
    down = getattr(module, "down_proj", None)
    if attribute != "gate_up_proj" or not isinstance(down, Tensor):
        return -1 if is_conv1d(module) else -2
    # Some experts keep (inputs, outputs), and not all of them say so; both maps are kept the same way round.
    return -1 if getattr(module, attribute).shape[-1] == 2 * down.shape[-2] else -2


def _name(module_name: str, attribute: str) -> str:
    """What a projection is called by those who use it; adapters put it one level deeper."""
    return _path(module_name).rpartition(".")[2] if attribute in ("weight", "bias") else attribute


def _path(module_name: str) -> str:
    return re.sub(r"(\.base_layer)+$", "", module_name)


def _holder(model: nn.Module, module_name: str, module: nn.Module, attribute: str) -> nn.Module:
    if attribute not in ("weight", "bias"):
        return module
    return model.get_submodule(_path(module_name).rpartition(".")[0])


def _outputs(module: nn.Module, attribute: str) -> int:
    """How many outputs each matrix of a parameter has; 0 where it is no matrix, as a kernel or a flat shard."""
    parameter: Any = getattr(module, attribute)
    if attribute.endswith("bias"):
        return parameter.shape[-1]
    return parameter.shape[output_dim(module, attribute)] if parameter.dim() in (2, 3) else 0


def _equal(count: int) -> Rule:
    """Equal parts that follow one another."""
    return lambda projection: Fused(1, (projection.length // count,) * count)


def _product(down: str) -> Rule:
    """What is multiplied element by element before it goes to ``down``: a gated unit, if this has fewer inputs."""

    def rule(projection: Projection) -> Fused | None:
        outwards = getattr(projection.holder, down, None)
        inputs = Projection(outwards, 0).size("in_features", "input_size")
        return Fused(1, (inputs,) * (projection.length // inputs)) if inputs else None

    return rule


def _gate_up(projection: Projection) -> Fused:
    experts = projection.holder
    if getattr(experts, "is_concatenated", not projection.is_in("GptOssExperts")):  # transformers 5.2 does not say
        return Fused(1, (projection.length // 2,) * 2)
    return Fused(projection.length // 2, (1, 1))


def _attention(projection: Projection) -> Fused:
    """Queries, keys and values that follow one another; the latter two may have fewer heads."""
    if projection.says("is_cross_attention"):
        return Fused(1, (projection.length // 2,) * 2)
    if not projection.key_value_heads:
        return Fused(1, (projection.length // 3,) * 3)
    queries, values = (heads * projection.size("head_dim") for heads in (projection.heads, projection.key_value_heads))
    return Fused(1, (queries, values, values))


def _attention_by_head(projection: Projection) -> Fused | None:
    """A query, a key and a value of every head."""
    heads = projection.heads
    return Fused(heads, (projection.length // (3 * heads),) * 3) if heads else None


def _c_attn(projection: Projection) -> Fused | None:
    together = projection.says("multi_query") or projection.says("is_cross_attention")
    by_head = projection.is_in("GPTBigCode") and not together
    return _attention_by_head(projection) if by_head else _attention(projection)


def _qkv_proj(projection: Projection) -> Fused | None:
    if projection.is_in("CodeGen"):
        return Fused(4, (projection.length // 12,) * 3)  # of the four TPU cores it was trained on
    return _attention_by_head(projection) if projection.is_in("MiniMaxLightning") else _attention(projection)


def _query_key_value(projection: Projection) -> Fused | None:
    """No default: others use the same name for either order."""
    if projection.is_in("Falcon"):
        return _falcon(projection)
    by_head = projection.is_in("Bloom", "GPTNeoX", "Persimmon")
    return _attention_by_head(projection) if by_head else None


def _falcon(projection: Projection) -> Fused | None:
    heads, size = projection.heads, projection.size("head_dim")
    if projection.says("new_decoder_architecture"):
        groups = projection.key_value_heads or 1
        return Fused(groups, (heads // groups * size, size, size))
    shared = projection.says("multi_query")
    return Fused(1, (heads * size, size, size)) if shared else _attention_by_head(projection)


def _gated_query(projection: Projection) -> Fused | None:
    """A query and an output gate of every head, in Qwen3-Next and later; without the gate it is half as long."""
    heads, size = projection.heads, projection.size("head_dim")
    gated = projection.is_in("Qwen") and projection.length == 2 * heads * size
    return Fused(heads, (size, size)) if gated else None


def _keys_and_values(projection: Projection) -> Fused:
    return Fused(1, (projection.size("kv_projection_size"),) * 2)


def _latent_to_keys_and_values(projection: Projection) -> Fused:
    """Multi-head latent attention: the part of a key without positions, and a value, of every head."""
    return Fused(projection.heads, (projection.size("qk_nope_head_dim"), projection.size("v_head_dim")))


def _to_latent(projection: Projection) -> Fused:
    """Multi-head latent attention: the latent vector, and the part of the key with positions that all heads share."""
    return Fused(1, (projection.size("kv_lora_rank"), projection.size("qk_rope_head_dim")))


def _delta_rule(projection: Projection) -> Fused:
    """Query, key, value and output gate of Qwen3-Next's linear attention, by key head."""
    keys, values = projection.size("key_dim"), projection.size("value_dim")
    heads = projection.size("num_k_heads") or 1
    return Fused(heads, (keys // heads, keys // heads, values // heads, values // heads))


def _delta_rule_gates(projection: Projection) -> Fused:
    """Learning rate and decay, by key head."""
    heads = projection.size("num_k_heads") or 1
    return Fused(heads, (projection.length // (2 * heads),) * 2)


def _delta_rule_joined(projection: Projection) -> Fused:
    keys, values = projection.size("key_dim"), projection.size("value_dim")
    return Fused(1, (keys, keys, values))


def _in_proj(projection: Projection) -> Fused | None:
    if projection.is_in("DisentangledSelfAttention"):  # DeBERTa
        return _attention_by_head(projection)
    if projection.size("conv_dim"):
        return _mamba2(projection)
    if projection.is_in("Zamba"):
        return Fused(projection.length // 2, (1, 1))
    return _product("out_proj")(projection)


def _mamba2(projection: Projection) -> Fused:
    """Gate, x, B, C and Δ."""
    inner, state = projection.size("intermediate_size"), projection.size("ssm_state_size")
    state *= projection.size("n_groups")
    return Fused(1, (inner, inner, state, state, projection.size("num_heads")))


def _x_proj(projection: Projection) -> Fused:
    """Δ, B and C of Mamba."""
    state = projection.size("ssm_state_size")
    return Fused(1, (projection.size("time_step_rank"), state, state))


def _rows_of_experts(projection: Projection) -> Fused:
    """DBRX: the experts' matrices lie under one another."""
    return Fused(1, (projection.size("ffn_hidden_size"),) * projection.size("moe_num_experts"))


RULES: dict[str, Rule] = {
    "c_attn": _c_attn,
    "qkv": _attention,
    "Wqkv": _attention,
    "qkv_proj": _qkv_proj,
    "qkv_linear": _attention,
    "att_proj": _attention,
    "query_key_value": _query_key_value,
    "in_proj_weight": _equal(3),
    "in_proj_bias": _equal(3),
    "q_proj": _gated_query,
    "to_kv": _equal(2),
    "kv_proj": _keys_and_values,
    "kv_b_proj": _latent_to_keys_and_values,
    "kv_a_proj_with_mqa": _to_latent,
    "in_proj": _in_proj,
    "x_proj": _x_proj,
    "in_proj_qkvz": _delta_rule,
    "in_proj_ba": _delta_rule_gates,
    "in_proj_qkv": _delta_rule_joined,
    "gate_up_proj": _gate_up,
    "gate_up_proj_bias": _gate_up,
    "Wi": _product("Wo"),
    "fc1": _product("fc2"),
    "weights_in": _product("weights_out"),
    "input_linear": _product("output_linear"),
    "w1": _rows_of_experts,
    "v1": _rows_of_experts,
    "w2": _rows_of_experts,
}

# Names that say so. Others in RULES, such as fc1, are mostly those of one matrix.
FUSED_NAMES = re.compile("qkv|query_key_value|c_attn|W_pack|in_proj_(weight|bias|ba)|kv_([ab]_)?proj|to_kv|gate_up")
