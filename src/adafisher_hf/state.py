"""The optimizer's state: what a parameter starts with, whether a saved one fits, and its dtypes after loading."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .config.adafisher import AdaFisherConfig
from .config.resume import changed_options, check_saved_groups, fixed_options, resumed
from .layers import Layout, accumulation_dtype
from .preconditioners.base import Preconditioner
from .ranks import check_placement, is_sharded, local, zeros_like
from .statistics.block import Block
from .statistics.counts import TOKENS
from .update import blockwise
from .update.batch import LR_MULTIPLE
from .update.rates import default_multiple

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]
Options = tuple[dict[str, str], dict[str, str]]  # of a saved group, of the running one


def initial_state(
    config: AdaFisherConfig,
    preconditioner: Preconditioner,
    param: Tensor,
    block: Block,
    device: torch.device,
    pretrained: bool = False,
) -> dict[str, Tensor]:
    """All keys that the parameter will ever have: distributed checkpoints drop what appears later.

    Args:
        pretrained: the model's weights were loaded.

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
    state = {"step": like.new_zeros(stack), **_momentum(config, param, block.layouts[0], dtype, device)}
    if param.dtype != dtype and config.rounding == "kahan":
        state["compensation"] = zeros_like(param, param.dtype, device)
    if preconditioner.grafted:
        state["sigma_sq"] = like.new_zeros(stack)
    if block.role == "vocabulary":
        multiple = like.new_ones(()) if pretrained or device.type == "meta" else default_multiple(param, like)
        state[LR_MULTIPLE] = multiple if config.vocabulary_lr is None else like.new_full((), config.vocabulary_lr)
    if block.taps:
        state[TOKENS] = like.new_zeros(len(block.taps))
    if preconditioner.measures(block):
        preconditioner.init(state, block.layouts, like)
    return state


def check_options(config: AdaFisherConfig, preconditioner: Preconditioner, params: Iterable[Tensor]) -> None:
    """Refuses what no state can be made for, before anything is trained.

    Args:
        params: on the meta device where a state is only counted.

    Raises:
        ValueError: options that do not go together.
        ImportError: a library that they need is not installed, or too old.
    """
    reason = preconditioner.refuses(config, sharded=False, ranks=1)
    if reason is not None:
        raise ValueError(reason)
    if config.state_dtype == "int8" and not all(param.is_meta for param in params):
        blockwise.library()


def check_parameter(param: Tensor, block: Block, state: Mapping[str, Tensor] | None) -> None:
    """Refuses a parameter that is another than the optimizer was made for.

    Raises:
        ValueError: it was replaced in its module, or resized.
    """
    if not block.is_current():
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} is no longer the model's: it was replaced or tied "
            "after the optimizer was made; make the optimizer afterwards"
        )
    if state and state["exp_avg"].shape != param.shape:
        raise ValueError(
            f"{block.name!r} has the shape {tuple(param.shape)} and its momentum {tuple(state['exp_avg'].shape)}: it "
            "was resized after the optimizer was made (resize_token_embeddings); make the optimizer afterwards"
        )


def checked_state(
    saved: StateDict,
    name: str,
    groups: Sequence[dict[str, Any]],
    blocks: dict[int, Block],
    config: AdaFisherConfig,
    preconditioner: Preconditioner,
) -> StateDict:
    """Refuses a state that another optimizer, mode, structure or model has saved, or that is damaged.

    Args:
        saved: a ``state_dict()``; it stays as it is, but for what older versions did not have.
        name: of the optimizer's class, for the errors.
        groups: of the optimizer.
        blocks: by ``id`` of their parameter.

    Returns:
        What can be loaded: the state, with the running optimizer's options where they were changed.

    Raises:
        ValueError, TypeError: it says what was found and what to do.
    """
    check_saved_groups(saved, groups, name)
    found = saved["param_groups"]
    for group, own in zip(found, groups, strict=True):
        fixed = fixed_options(group, own)
        for saved_id, param in zip(group["params"], own["params"], strict=True):
            state = saved["state"].get(saved_id)
            if state:
                block = blocks[id(param)]
                expected = initial_state(config, preconditioner, param, block, torch.device("meta"))
                if LR_MULTIPLE in expected and isinstance(state.get("step"), Tensor):
                    state.setdefault(LR_MULTIPLE, state["step"].new_ones(()))  # there was none in older versions
                _check_fit(state, expected, fixed, block.name)
                _check_finite(state, block.name)
        _check_same(*fixed, ":")
    _tell_changes(found, groups)
    return {**saved, "param_groups": [resumed(group, own) for group, own in zip(found, groups, strict=True)]}


def restore_state(state: dict[Tensor, dict[str, Any]], groups: Sequence[dict[str, Any]], saved: StateDict) -> None:
    """Copies the saved tensors, each in the dtype that it has.

    Args:
        state: of the optimizer, empty; written to.
        groups: of the optimizer.
        saved: what ``checked_state`` has returned.
    """
    saved_ids = [i for group in saved["param_groups"] for i in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for saved_id, param in zip(saved_ids, params, strict=True):
        tensors = saved["state"].get(saved_id)
        if tensors:
            state[param] = {key: value.detach().to(param.device, copy=True) for key, value in tensors.items()}


def _momentum(
    config: AdaFisherConfig, param: Tensor, layout: Layout, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    length = blockwise.block_length(layout) if config.state_dtype == "int8" else None
    if length is None:
        wide = torch.bfloat16 if config.state_dtype == "bfloat16" else dtype
        return {"exp_avg": zeros_like(param, wide, device)}
    codes = zeros_like(param, torch.uint8, device)
    return {"exp_avg": codes, blockwise.SCALE: zeros_like(blockwise.firsts(codes, length), torch.float32, device)}


def _check_fit(state: dict[str, Any], expected: dict[str, Tensor], options: Options, name: str) -> None:
    saved, own = options
    _check_same({**saved, **_shapes(state)}, {**own, **_shapes(expected)}, f" or for another model; at {name!r},")
    _check_same(_dtypes(state), _dtypes(expected), f" or for a model of another dtype; at {name!r},")


def _check_finite(state: dict[str, Tensor], name: str) -> None:
    finite = {key: local(value).isfinite().all() for key, value in state.items() if not value.is_meta}
    if not finite or bool(torch.stack(list(finite.values())).all()):  # waits for the device once
        return
    broken = ", ".join(key for key, whole in finite.items() if not whole)
    raise ValueError(
        f"this optimizer state is damaged: {broken} of {name!r} is not finite; resume from an earlier checkpoint, or "
        "start a new run from the checkpoint's weights"
    )


def _check_same(found: dict[str, Any], needed: dict[str, Any], where: str) -> None:
    different = sorted(key for key in found.keys() | needed.keys() if found.get(key) != needed.get(key))
    if different:
        what = "; ".join(f"{key} is {found.get(key, 'missing')}, not {needed.get(key, 'there')}" for key in different)
        raise ValueError(
            f"this optimizer state was saved with other options{where} {what}. Resume with the options it was saved "
            "with (AdaFisherTrainer keeps them in the checkpoint's adafisher_config.json: "
            "optim_args='config=CHECKPOINT'), or start a new run from the checkpoint's weights"
        )


def _tell_changes(saved: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> None:
    pairs = [changed_options(group, own).items() for group, own in zip(saved, groups, strict=True)]
    changes = dict.fromkeys(f"{name} from {old} to {new}" for pair in pairs for name, (old, new) in pair)
    if changes:
        logger.info("resumed with other options than the state was saved with: %s", ", ".join(changes))


def _shapes(state: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for key, x in state.items()}


def _dtypes(state: dict[str, Tensor]) -> dict[str, str]:
    return {key: str(value.dtype).removeprefix("torch.") for key, value in state.items()}
