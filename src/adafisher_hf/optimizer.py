"""AdaFisher and AdaFisherW: parameter groups, state, and the order of a step."""

from __future__ import annotations

import copy
import dataclasses
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batches import Key, add_parameter, exchange
from .config import AdaFisherConfig
from .curvature import Block, Blocks, make_mode
from .curvature.kronecker import Kronecker
from .curvature.modes import unit_divisor
from .kernels import KERNELS, Batch, Divisor, Hyper
from .pieces import Piece
from .sharding import anywhere, check_placement, is_sharded, local
from .state import check_saved_state, initial_state, restore_dtypes
from .uneven import JoinsUnevenly

logger = logging.getLogger(__name__)

BASIS_WARMUP = 20  # refreshes at which every basis is made anew: early on the curvature turns from step to step
GROUP_KNOBS = ("beta", "beta2", "damping")  # knobs that a parameter group may have for itself


class AdaFisher(torch.optim.Optimizer, JoinsUnevenly):
    """AdaFisher (arXiv 2405.16397): momentum divided by a Kronecker-diagonal Fisher, with L2 (coupled) weight decay.

    ``mode="calibrated"`` takes ``θ ← θ - α a/F̂ · ‖a‖/‖a/F̂‖`` with ``a = m̂/σ`` and ``F̂ = F/mean(F) + τ``;
    ``"paper"`` and ``"reference"`` take ``θ ← θ - α m̂/F̃`` (eq. 4 as printed, and the published arithmetic).
    The optimizer puts hooks on the modules that own the parameters; ``close()`` takes them off, and so does garbage
    collection.

    Args:
        params: tensors, named tensors, parameter groups, or the model itself.
        lr: learning rate α; in calibrated mode AdamW's values and schedules carry over.
        model: the model that the parameters belong to, for the hooks.
        network: the same as ``model``, under a name that ``Trainer.create_optimizer`` does not claim for itself.
        process_group: the ranks that train this model together; by default all.
        weight_decay: κ. AdaFisher adds ``κ θ`` to the gradient (calibrated: ``κ θ σ``), AdaFisherW decays θ directly.
        knobs: the fields of ``AdaFisherConfig``.

    Raises:
        ValueError: no model, nothing trainable, a parameter that the model does not own, sparse embeddings, complex
            parameters, or a knob out of range.
        TypeError: an unknown knob, or one of the wrong type.
    """

    name = "adafisher"
    decoupled = False

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        model: nn.Module | None = None,
        network: nn.Module | None = None,
        process_group: dist.ProcessGroup | None = None,
        weight_decay: float = 0.0,
        **knobs: Any,
    ):
        model = model if model is not None else network
        if isinstance(params, nn.Module):
            model = params if model is None else model
            params = [item for item in params.named_parameters() if item[1].requires_grad]
        if not isinstance(model, nn.Module | None):
            raise TypeError(f"model must be the torch module that owns the parameters, not {model!r}")
        if model is None:
            raise ValueError(f"{type(self).__name__} needs the model for its curvature hooks: pass model=model")
        self.config = AdaFisherConfig.from_knobs(knobs).resolved()
        self._warmup = self.config.update_warmup or 0
        self._last_lrs: list[float | Tensor] = []
        self._mode = make_mode(self.config)
        self._blocks = Blocks(model, self._mode, published=self.config.mode == "reference", ranks=process_group)
        self._blocks.gate.stride = self.config.token_stride
        self._finalizer = weakref.finalize(self, _remove, self._blocks.handles)
        group_knobs = {name: getattr(self.config, name) for name in GROUP_KNOBS}
        try:
            super().__init__(
                _not_empty(params),
                dict(lr=lr, weight_decay=weight_decay, step=0, config=self._written_config(), **group_knobs),
            )
        except BaseException:
            self.close()
            raise

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, checks it, and hooks the modules that own its parameters (unfreezing in mid-training).

        Raises:
            ValueError: see the class.
        """
        if self.param_groups:
            param_group = {**param_group, "step": self.param_groups[0]["step"]}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
            self._blocks.add(group["params"])
        except BaseException:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Refreshes the curvature when one is due, then updates every parameter that has a gradient.

        Raises:
            ValueError: a closure was given; its backward passes would be counted into the statistics.
        """
        if closure is not None:
            raise ValueError(f"{type(self).__name__}.step() takes no closure: call backward() first, then step()")
        blocks = self._by_parameter()
        self._init_missing_state(blocks)
        if self._is_dry_step():
            return
        if self._blocks.gate.active and self._finalizer.alive:
            self._refresh(blocks)
        self._update(blocks)
        # A schedule moves lr right after the step; the logs show what this step has done.
        self._last_lrs = [group["lr"] for group in self.param_groups]
        self._count_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and the statistics that came with them."""
        super().zero_grad(set_to_none)
        self._blocks.take_nothing()

    @torch.no_grad()
    def curvature(self, param: Tensor) -> Tensor:
        """The divisor of the momentum of one parameter: F̂ in calibrated mode, F̃ otherwise; in its full shape.

        Raises:
            ValueError: a parameter that this optimizer does not hold, or one that was frozen all the time.
        """
        blocks = self._by_parameter()
        if id(param) not in blocks:
            raise ValueError(
                f"no parameter of this optimizer: a tensor of shape {tuple(param.shape)} (FSDP2 shows gathered ones "
                "after an evaluation: take those of optimizer.param_groups)"
            )
        self._init_missing_state(blocks)
        if not self.state.get(param):
            raise ValueError(f"{blocks[id(param)].name!r} is frozen and has no curvature yet")
        return self._divisor(param, blocks[id(param)], self._group_of(param)["damping"]).dense().reshape(param.shape)

    def summary(self) -> dict[str, dict[str, float]]:
        """Curvature and update size by kind of layer, for the logs. Waits for the device."""
        from .summary import summarize

        return summarize(self)

    def attach_scaler(self, scaler: Any | None) -> None:
        """Takes the handle of a GradScaler: paper and reference modes need δ without its loss scale."""
        self._blocks.gate.inverse_scale = None if scaler is None else _inverse_scale(scaler)

    def close(self) -> None:
        """Takes every hook off the model. The optimizer can still step, with the curvature it has."""
        self._finalizer()
        self._blocks.take_nothing()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, keeping the dtypes it was saved with (torch casts everything to the parameter's dtype).

        Raises:
            ValueError: the state is that of another optimizer, mode, structure or model; nothing was loaded.
        """
        check_saved_state(self, state_dict)
        super().load_state_dict(state_dict)
        restore_dtypes(self, state_dict)
        self._forget_divisors()
        self._blocks.take_nothing()
        self._blocks.gate.active = self._refresh_due()

    def _skip_step(self) -> None:
        """What a rank without data does while the others take a step."""
        self._init_missing_state(self._by_parameter())
        if self._blocks.gate.active and self._finalizer.alive:
            self._blocks.take_nothing()
            self._blocks.reduce()
            self._blocks.take_nothing()
        self._count_step()

    def _count_step(self) -> None:
        for group in self.param_groups:
            group["step"] += 1
        self._blocks.gate.active = self._refresh_due()

    def _forget_divisors(self) -> None:
        for block in self._blocks:
            block.divisor = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaFisher:
        """A copy with the model and hooks of its own; with a model that is copied in the same call, on that copy."""
        model = copy.deepcopy(self._blocks.model, memo)
        groups = [{**group, "params": copy.deepcopy(group["params"], memo)} for group in self.param_groups]
        twin = type(self)(groups, model=model, process_group=self._blocks.ranks, **self.config.to_dict())
        twin.load_state_dict(self.state_dict())
        return twin

    def _written_config(self) -> str:
        """What a checkpoint has to be resumed with; how the kernel is implemented makes no difference to it."""
        return dataclasses.replace(self.config, kernel="auto").to_optim_args(explicit=True)

    def _refresh_due(self) -> bool:
        step = self.param_groups[0]["step"]
        return step < self._warmup or step % self.config.update_interval == 0

    def _gamma(self) -> float:
        if self.config.gamma is not None:
            return self.config.gamma
        return 0.95 if self.param_groups[0]["step"] < self._warmup else 0.8

    def _init_missing_state(self, blocks: dict[int, Block]) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if not blocks[id(param)].is_current():
                    raise ValueError(
                        f"a parameter of shape {tuple(param.shape)} is no longer the model's: it was replaced or tied "
                        "after the optimizer was made; make the optimizer afterwards"
                    )
                used = param.requires_grad or param.grad is not None
                if not self.state.get(param) and used and param.numel():
                    self.state[param] = initial_state(self, param, blocks[id(param)], param.device)

    def _is_dry_step(self) -> bool:
        """Distributed checkpoints call step() with zero gradients, before anything was trained, to make the state."""
        if self.param_groups[0]["step"]:
            return False
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        real = self._blocks.fired() or any(bool(local(p.grad).any()) for p in params)
        if any(is_sharded(p) for p in params):
            real = anywhere(real, params[0].device, self._blocks.ranks)  # each sees its own rows
        return not real

    def _refresh(self, blocks: dict[int, Block]) -> None:
        gamma = self._gamma()
        self._warn_of_bypassed_head()
        self._blocks.reduce()
        for param, grad in self._with_grad():
            block = blocks[id(param)]
            uses = block.uses(grad, self._mode)
            if uses:
                block.raw_mean = self._mode.refresh(self.state[param], uses, gamma)
                block.divisor = None
        self._blocks.take_nothing()
        if isinstance(self._mode, Kronecker):
            self._update_bases(self._mode)

    def _warn_of_bypassed_head(self) -> None:
        head = self._blocks.bypassed_head() if self.param_groups[0]["step"] == 0 else None
        if head is not None:
            logger.warning(
                "%s did not run, but got a gradient: a fused loss (Liger's, TRL's) computes it where no hook can see "
                "it. A tied embedding then has the curvature of its look-ups alone, an untied head that of "
                "its gradient. For the full statistics turn the fused loss off where that can be done "
                "(use_liger_kernel=False).",
                head,
            )

    def _update_bases(self, mode: Kronecker) -> None:
        """New eigenvectors for all blocks at the first refreshes, then for each at its own turn: no step stalls."""
        step, interval = self.param_groups[0]["step"], self.config.basis_interval
        dense = min(step, self._warmup)
        turn = dense + (step // self.config.update_interval - dense // self.config.update_interval)
        due = [
            block
            for i, block in enumerate(self._blocks)
            if block.parameter in self.state and (turn < BASIS_WARMUP or (turn + i) % interval == 0)
        ]
        mode.update_bases([(self.state[block.parameter], block.layouts) for block in due])
        for block in due:
            block.divisor = None

    def _update(self, blocks: dict[int, Block]) -> None:
        batches, write_back = self._batches(blocks)
        kernel = KERNELS[self.config.kernel]
        for key, hyper in exchange(batches, self._hyper).items():
            kernel(batches[key], hyper)
        for param, view in write_back:
            param.copy_(view.view(param.shape))

    def _batches(self, blocks: dict[int, Block]) -> tuple[dict[Key, Batch], list[tuple[Tensor, Tensor]]]:
        batches: dict[Key, Batch] = defaultdict(Batch)
        write_back: list[tuple[Tensor, Tensor]] = []
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                if param.grad is not None and param.numel():
                    block, state = blocks[id(param)], self.state[param]
                    piece = Piece.of(param, block.layouts[0])
                    key = Key(index, param.device, state["step"].dtype, piece.ranks)
                    divisors = self._divisors(param, block, piece, group["damping"])
                    view = add_parameter(batches[key], param, state, piece, divisors)
                    if not param.is_contiguous():
                        write_back.append((param, view))
        return batches, write_back

    def _divisors(self, param: Tensor, block: Block, piece: Piece, damping: float) -> list[Divisor]:
        divisor = self._divisor(param, block, damping)
        if block.divisors is None:
            block.divisors = piece.divisors(divisor)
        return block.divisors

    def _divisor(self, param: Tensor, block: Block, damping: float) -> Divisor:
        if block.divisor is None or block.damping != damping:
            state = self.state[param]
            known = "row_factor_0" in state
            block.divisor = (
                self._mode.divisor(state, block.layouts, damping)
                if known
                else unit_divisor(block.layouts[0], state["step"])
            )
            block.divisors, block.damping = None, damping
        return block.divisor

    def _by_parameter(self) -> dict[int, Block]:
        """The blocks by ``id`` of their parameter: FSDP2 puts new ones into the groups, in the old order."""
        return self._blocks.bind([param for group in self.param_groups for param in group["params"]])

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        return next(group for group in self.param_groups if any(p is param for p in group["params"]))

    def _hyper(self, index: int, sigma_floor: Tensor) -> Hyper:
        group = self.param_groups[index]
        return Hyper(
            lr=group["lr"],
            beta=group["beta"],
            beta2=group["beta2"],
            weight_decay=group["weight_decay"],
            decoupled=self.decoupled,
            calibrated=self.config.mode == "calibrated",
            sigma_floor=sigma_floor,
        )

    def _with_grad(self) -> list[tuple[Tensor, Tensor]]:
        params = (p for group in self.param_groups for p in group["params"])
        return [(p, p.grad) for p in params if p.grad is not None and p.numel()]


class AdaFisherW(AdaFisher):
    """AdaFisher with decoupled weight decay, ``θ ← θ - α (u + κ θ)``: what AdamW is to Adam. See AdaFisher."""

    name = "adafisherw"
    decoupled = True


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _not_empty(params: Iterable) -> Sequence:
    params = list(params)
    nested = [_listed(item["params"]) if isinstance(item, dict) else [item] for item in params]
    params = [
        {**item, "params": inner} if isinstance(item, dict) else item
        for item, inner in zip(params, nested, strict=True)
    ]
    tensors = [t[1] if isinstance(t, tuple) else t for inner in nested for t in inner]
    if not any(t.requires_grad for t in tensors):
        raise ValueError("the model has nothing trainable: every parameter is frozen (requires_grad=False)")
    return params


def _listed(params: Any) -> list:
    return [params] if isinstance(params, Tensor) else list(params)


def _check_group(group: dict[str, Any]) -> None:
    for key in ("lr", "weight_decay", *GROUP_KNOBS):
        if not isinstance(group[key], int | float | Tensor):
            raise TypeError(f"{key} must be a number, not {group[key]!r}")
    for key in ("lr", "weight_decay"):
        if not float(group[key]) >= 0:
            raise ValueError(f"{key} must be at least 0, not {group[key]}")
    AdaFisherConfig(**{name: group[name] for name in GROUP_KNOBS})
    for param in group["params"]:
        check_placement(f"a parameter of shape {tuple(param.shape)}", param, second_moment=False)
        if param.is_complex():
            raise ValueError(f"complex parameters are not supported: one has dtype {param.dtype}")


def _inverse_scale(scaler: Any) -> Callable[[], Tensor | float]:
    # The scaler makes its tensor at the first backward pass; reading the tensor does not wait for the device.
    return lambda: 1.0 if scaler._scale is None else 1.0 / scaler._scale
