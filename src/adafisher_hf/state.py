"""The optimizer's state: what a parameter starts with, and whether a saved one fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .curvature import Block
from .sharding import check_placement, is_sharded

if TYPE_CHECKING:
    from .optimizer import AdaFisher


def initial_state(optimizer: AdaFisher, param: Tensor, block: Block, device: torch.device) -> dict[str, Tensor]:
    """All keys that the parameter will ever have: distributed checkpoints drop what appears later.

    Raises:
        ValueError: the parameter is split over the ranks in a way that is not supported.
    """
    config = optimizer.config
    check_placement(block.name, param, config.structure == "kronecker" and config.second_moment == "rotated")
    wide = torch.promote_types(param.dtype, torch.float32)
    stack = block.layouts[0].shape[0] if block.layouts[0].independent else 1
    like = torch.empty(0, dtype=wide, device=device)
    momentum_dtype = torch.bfloat16 if optimizer.config.state_dtype == "bfloat16" else wide
    state = {"step": like.new_zeros(stack), "exp_avg": _zeros_like(param, momentum_dtype, device)}
    if param.dtype != wide and optimizer.config.rounding == "kahan":
        state["compensation"] = _zeros_like(param, param.dtype, device)
    if optimizer.config.mode == "calibrated":
        state["sigma_sq"] = like.new_zeros(stack)
    if block.taps or optimizer._mode.uses_gradient:
        for k, layout in enumerate(block.layouts):
            optimizer._mode.init(state, k, layout, like)
    return state


def check_saved_state(optimizer: AdaFisher, state_dict: dict[str, Any]) -> None:
    """Refuses a state that another optimizer, mode, structure or model has saved.

    Raises:
        ValueError: it says what was found and what to do.
    """
    if any("config" not in group for group in state_dict["param_groups"]):
        raise ValueError(
            f"this optimizer state was not saved by {type(optimizer).__name__}: resume with the optimizer that saved "
            "it, or start a new run from the checkpoint's weights"
        )
    blocks = optimizer._by_parameter()
    for saved_group, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=False):
        for saved_id, param in zip(saved_group["params"], group["params"], strict=False):
            saved = state_dict["state"].get(saved_id)
            if saved:
                expected = initial_state(optimizer, param, blocks[id(param)], torch.device("meta"))
                found = {"mode": _knobs(saved_group["config"])["mode"], **_shapes(saved)}
                needed = {"mode": optimizer.config.mode, **_shapes(expected)}
                _check_same(found, needed, f" or for another model; at {blocks[id(param)].name!r},")
        _check_same(_knobs(saved_group["config"]), _knobs(group["config"]), ":")


def restore_dtypes(optimizer: AdaFisher, state_dict: dict[str, Any]) -> None:
    """Puts the saved tensors back as they were: torch casts them to the parameter's dtype when it loads them."""
    saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for saved_id, param in zip(saved_ids, params, strict=True):
        for key, value in state_dict["state"].get(saved_id, {}).items():
            if isinstance(value, Tensor):
                optimizer.state[param][key] = value.detach().to(device=param.device, copy=True)


def _zeros_like(param: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if is_sharded(param) and device.type != "meta":
        return torch.zeros_like(param, dtype=dtype)
    return torch.zeros(param.shape, dtype=dtype, device=device)


def _check_same(found: dict[str, Any], needed: dict[str, Any], where: str) -> None:
    different = sorted(key for key in found.keys() | needed.keys() if found.get(key) != needed.get(key))
    if different:
        what = "; ".join(f"{key} is {found.get(key, 'missing')}, not {needed.get(key, 'there')}" for key in different)
        raise ValueError(
            f"this optimizer state was saved with other options{where} {what}. Resume with the options it was saved "
            "with (AdaFisherTrainer keeps them in the checkpoint's adafisher_config.json: "
            "optim_args='config=CHECKPOINT'), or start a new run from the checkpoint's weights"
        )


def _knobs(config: str) -> dict[str, str]:
    """The written knobs by name; also those of another version, which need not be known here."""
    return dict(pair.split("=", 1) for pair in config.split(","))


def _shapes(state: dict[str, Any]) -> dict[str, tuple]:
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
