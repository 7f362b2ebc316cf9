"""The optimizer's state: what a parameter starts with, whether a saved one fits, and its dtypes after loading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .config.adafisher import AdaFisherConfig
from .layers import accumulation_dtype
from .preconditioners.base import Preconditioner
from .ranks import check_placement, is_sharded
from .statistics.model import Block

StateDict = dict[str, Any]


def initial_state(
    config: AdaFisherConfig, preconditioner: Preconditioner, param: Tensor, block: Block, device: torch.device
) -> dict[str, Tensor]:
    """All keys that the parameter will ever have: distributed checkpoints drop what appears later.

    Raises:
        ValueError: the parameter is split over the ranks in a way that is not supported.
    """
    check_placement(block.name, param)
    reason = preconditioner.refuses(config, sharded=is_sharded(param), ranks=1)
    if reason is not None:
        raise ValueError(reason)
    dtype = accumulation_dtype(param.dtype)
    stack = block.layouts[0].shape[0] if block.layouts[0].independent else 1
    like = torch.empty(0, dtype=dtype, device=device)
    momentum_dtype = torch.bfloat16 if config.state_dtype == "bfloat16" else dtype
    state = {"step": like.new_zeros(stack), "exp_avg": _zeros_like(param, momentum_dtype, device)}
    if param.dtype != dtype and config.rounding == "kahan":
        state["compensation"] = _zeros_like(param, param.dtype, device)
    if preconditioner.grafted:
        state["sigma_sq"] = like.new_zeros(stack)
    if preconditioner.measures(block):
        preconditioner.init(state, block.layouts, like)
    return state


def check_saved_state(
    saved: StateDict,
    name: str,
    groups: Sequence[dict[str, Any]],
    blocks: dict[int, Block],
    config: AdaFisherConfig,
    preconditioner: Preconditioner,
) -> None:
    """Refuses a state that another optimizer, mode, structure or model has saved.

    Args:
        saved: a ``state_dict()``.
        name: of the optimizer, for the error.
        groups: of the optimizer.
        blocks: by ``id`` of their parameter.

    Raises:
        ValueError: it says what was found and what to do.
    """
    if any("config" not in group for group in saved["param_groups"]):
        raise ValueError(
            f"this optimizer state was not saved by {name}: resume with the optimizer that saved "
            "it, or start a new run from the checkpoint's weights"
        )
    for saved_group, group in zip(saved["param_groups"], groups, strict=False):
        options = _knobs(saved_group["config"])
        for saved_id, param in zip(saved_group["params"], group["params"], strict=False):
            found = saved["state"].get(saved_id)
            if found:
                block = blocks[id(param)]
                expected = initial_state(config, preconditioner, param, block, torch.device("meta"))
                needed = {"mode": config.mode, **_shapes(expected)}
                _check_same(
                    {"mode": options["mode"], **_shapes(found)}, needed, f" or for another model; at {block.name!r},"
                )
        _check_same(options, _knobs(group["config"]), ":")


def restore_dtypes(state: dict[Tensor, dict[str, Any]], groups: Sequence[dict[str, Any]], saved: StateDict) -> None:
    """Puts the saved tensors back as they were: torch casts them to the parameter's dtype when it loads them."""
    saved_ids = [i for group in saved["param_groups"] for i in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for saved_id, param in zip(saved_ids, params, strict=True):
        for key, value in saved["state"].get(saved_id, {}).items():
            if isinstance(value, Tensor):
                state[param][key] = value.detach().to(device=param.device, copy=True)


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
