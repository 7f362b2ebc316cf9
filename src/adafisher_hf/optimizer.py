"""AdaFisher and AdaFisherW: parameter groups, and the order of a step. Nothing is computed here."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .compat import inverse_scale_of, is_loaded
from .config.adafisher import AdaFisherConfig
from .config.groups import GROUP_KNOBS, check_group, follow_momentum, listed
from .config.resume import written
from .insight.coverage import CoverageRow, coverage_of_blocks
from .insight.summary import ParameterSummary, by_parameter, observe, summarize_rows
from .join import JoinsUnevenly
from .preconditioners import find
from .preconditioners.base import Preconditioner
from .ranks import DEEPSPEED, check_wrapping, is_distributed, refuse_replica
from .schedule import Schedule
from .state import check_options, check_parameter, checked_state, initial_state, restore_state
from .statistics.block import Block
from .statistics.counts import keep_token_counts, restore_token_counts
from .statistics.model import ModelStatistics
from .statistics.telling import warn
from .update import load_kernel
from .update.batch import Hyper
from .update.collect import Collected, collect
from .update.directions import Directions
from .update.release import Release
from .update.step import take_step

logger = logging.getLogger(__name__)


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
        ImportError: ``state_dtype="int8"`` without bitsandbytes, or with one that is too old.
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
        if model is None and isinstance(params, nn.Module):
            model = params
        if not isinstance(model, nn.Module | None):
            raise TypeError(f"model must be the torch module that owns the parameters, not {model!r}")
        self.config = config = AdaFisherConfig.from_knobs(knobs).resolved()
        self._preconditioner: Preconditioner = find(config.mode, config.structure).load().from_config(config)
        if model is None and self._preconditioner.reads == "taps":
            raise ValueError(f"{type(self).__name__} needs the model for its curvature hooks: pass model=model")
        if model is not None:
            check_wrapping(model)
        self._may_be_wrapped = model is not None  # since the optimizer was made
        self.ranks = process_group
        self._schedule = Schedule(
            config.update_warmup or 0, config.update_interval, config.gamma, config.basis_interval
        )
        self._directions = Directions(self._preconditioner, config.pair_damping if config.takes_pairs else None)
        self._statistics = ModelStatistics(
            model,
            self._preconditioner.wanted(),
            config.estimator,
            config.token_stride,
            process_group,
            excluded=config.excluded(),
        )
        self._pretrained = model is None or is_loaded(model)
        if model is not None:
            self._statistics.handles.append(model.register_forward_pre_hook(refuse_replica))
        self._release = Release(self) if config.gradient_release else None
        self._trace_means: dict[int, Tensor | None] = {}  # of the last refresh, by id of the block: for the logs
        self._lengths: dict[int, tuple[Tensor, slice]] = {}  # of the last step, by id of the block: for the logs
        defaults = dict(lr=lr, weight_decay=weight_decay, step=0, optimizer=self.name, momentum=config.beta)
        try:
            super().__init__(listed(params), {**defaults, **{name: getattr(config, name) for name in GROUP_KNOBS}})
            check_options(config, self._preconditioner, (param for _, param in self._params()))
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
        cycled = "momentum" in param_group
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if not cycled:
                del group["momentum"]  # a default, so that schedules that cycle it take this optimizer
            check_group(group)
            follow_momentum([group])
            group.setdefault("config", written(self.config, group))
            self._statistics.add(group["params"])
            if self._release is not None:
                self._statistics.handles += self._release.attach(group["params"])
            if self.config.takes_pairs:
                self._statistics.refuse_parted_pairs(group["params"] for group in self.param_groups)
        except BaseException:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Refreshes the curvature when one is due, then updates every parameter that has a gradient.

        Args:
            closure: zeroes the gradients, runs forward and backward pass once and returns the loss, as Lightning's
                does. Its statistics are this step's.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._release is not None and self._release.begun:
            self._release.end_step()
            self._count_step()
            return loss
        blocks = self._begin_step()
        if not self._with_grad():
            self._statistics.refuse_foreign_gradients()
        if self._is_dry_step():
            return loss
        if self._statistics.gate.active and not self._statistics.closed:
            self._refresh(blocks)
        self._update(blocks)
        self._count_step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and the statistics that came with them."""
        super().zero_grad(set_to_none)
        self._statistics.clear()

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
        block, state = blocks[id(param)], self.state.get(param)
        if not state:
            raise ValueError(f"{block.name!r} is frozen and has no curvature yet")
        damping = next(group["damping"] for group, p in self._params() if p is param)
        return self._directions.whole(block, state, damping).dense().reshape(param.shape)

    def summary(self) -> dict[str, dict[str, float]]:
        """Curvature and update size by kind of layer, for the logs. Waits for the device."""
        return summarize_rows(self.summary_rows(), self.figures())

    def summary_rows(self) -> list[ParameterSummary]:
        """Curvature and update size of every parameter that has a state. Waits for the device once."""
        if not self.param_groups[0]["step"]:
            return []
        means, blocks = self._trace_means if self._preconditioner.grafted else None, self._by_parameter()
        return by_parameter(observe(self._params(), blocks, self.state, self._directions, means, self._lengths))

    def figures(self) -> dict[str, dict[str, float]]:
        """What the structure has to say in the logs beside the curvature of parameters."""
        return self._preconditioner.figures()

    def coverage_rows(self) -> list[CoverageRow]:
        """Which kind of curvature each of the optimizer's parameters has, in the order of the model."""
        blocks = self._statistics
        return coverage_of_blocks(blocks.model, blocks, self._preconditioner, self.config.takes_pairs)

    def attach_scaler(self, scaler: Any | None) -> None:
        """Takes the handle of a GradScaler: paper and reference modes need δ without its loss scale."""
        self._statistics.gate.inverse_scale = None if scaler is None else inverse_scale_of(scaler)

    def init_state(self) -> None:
        """Makes the state of every parameter, as the first step would."""
        self._init_missing_state(self._by_parameter())

    def close(self) -> None:
        """Takes every hook off the model. The optimizer can still step, with the curvature it has."""
        self._statistics.close()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, keeping the dtypes it was saved with (torch casts everything to the parameter's dtype).

        Options that no state is made for, such as ``damping``, stay those of this optimizer; the log says which.

        Raises:
            ValueError, TypeError: the state is damaged, or that of another optimizer, mode, structure or model;
                nothing was loaded.
        """
        blocks, name = self._by_parameter(), type(self).__name__
        state_dict = checked_state(state_dict, name, self.param_groups, blocks, self.config, self._preconditioner)
        super().load_state_dict({**state_dict, "state": {}})  # its casts would be a copy in the parameters' dtype
        restore_state(self.state, self.param_groups, state_dict)
        self.state_was_written()
        self._statistics.clear()
        self._statistics.has_measured |= self.param_groups[0]["step"] > 0
        self._open_gate()

    def skip_step(self) -> None:
        """What a rank without data does while the others take a step."""
        self.init_state()
        if self._is_dry_step():
            return
        if self._statistics.gate.active and not self._statistics.closed:
            self._statistics.clear()
            self._statistics.reduce()
            self._statistics.has_news()  # as the others ask
            if self._statistics.count_tokens():
                keep_token_counts(self.state, self._statistics)
            self._statistics.clear()
        self._count_step()

    def shared_tensors(self) -> list[Tensor]:
        """All tensors of the state, in one order on all ranks."""
        return [value for _, param in self._params() for _, value in sorted(self.state.get(param, {}).items())]

    def state_was_written(self) -> None:
        """Forgets what was made of the state's old values."""
        restore_token_counts(self.state, self._statistics)
        self._directions.forget(self._statistics)
        self._trace_means.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaFisher:
        """A copy with the model and hooks of its own; with a model that is copied in the same call, on that copy."""
        model = copy.deepcopy(self._statistics.model, memo)
        groups = [{**group, "params": copy.deepcopy(group["params"], memo)} for group in self.param_groups]
        twin = type(self)(groups, model=model, process_group=self.ranks, **self.config.to_dict())
        twin.load_state_dict(self.state_dict())
        twin._statistics.gate.inverse_scale = self._statistics.gate.inverse_scale
        return twin

    # The parts of a step, in their order ------------------------------------------------------------------------------

    def _begin_step(self) -> dict[int, Block]:
        follow_momentum(self.param_groups)
        blocks = self._by_parameter()
        self._init_missing_state(blocks)
        self._lengths = {}
        return blocks

    def _by_parameter(self) -> dict[int, Block]:
        """The blocks by ``id`` of their parameter: FSDP2 puts new ones into the groups, in the old order."""
        params = [param for _, param in self._params()]
        if len(params) != len(self._statistics):
            raise ValueError(f"the optimizer's parameters were exchanged for {len(params)} others. {DEEPSPEED}")
        return self._statistics.bind(params)

    def _init_missing_state(self, blocks: dict[int, Block]) -> None:
        if self._may_be_wrapped and self._statistics.model is not None:
            check_wrapping(self._statistics.model)
            self._may_be_wrapped = False
        for _, param in self._params():
            block = blocks[id(param)]
            check_parameter(param, block, self.state.get(param))
            used = param.requires_grad or param.grad is not None
            if not self.state.get(param) and used and param.numel():
                self.state[param] = initial_state(
                    self.config, self._preconditioner, param, block, param.device, self._pretrained
                )

    def _is_dry_step(self) -> bool:
        """Distributed checkpoints call step() with zero gradients, before anything was trained, to make the state."""
        params = [param for _, param in self._params()]
        return not (self.param_groups[0]["step"] or self._statistics.saw_anything(params))

    def _refresh(self, blocks: dict[int, Block]) -> None:
        step = self.param_groups[0]["step"]
        if step == 0:
            self._statistics.warn_of_head_without_forward()
            self._tell_advice()
        self._statistics.reduce()
        if not self._statistics.has_news():
            return
        if self._statistics.count_tokens():
            keep_token_counts(self.state, self._statistics)
        self._take_in(blocks, self._with_grad())
        self._statistics.clear()
        if self._preconditioner.renews:
            self._directions.forget(self._renew(step))

    def _take_in(self, blocks: dict[int, Block], gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
        gamma, changed = self._schedule.gamma_at(self.param_groups[0]["step"]), []
        for param, grad in gradients:
            block = blocks[id(param)]
            uses = block.uses(grad, self._statistics.wanted)
            if uses:
                self._trace_means[id(block)] = self._preconditioner.refresh(self.state[param], uses, gamma)
                changed.append(block)
        self._directions.forget(changed)

    def _tell_advice(self) -> None:
        advice = self._preconditioner.advice(block.layouts[0] for block in self._statistics)
        if advice is not None:
            warn(logger, advice)

    def _renew(self, step: int) -> list[Block]:
        due = [
            block
            for i, block in enumerate(self._statistics)
            if block.parameter in self.state and self._schedule.is_renewed(step, i)
        ]
        self._preconditioner.renew([(self.state[block.parameter], block.layouts) for block in due])
        return due

    def _update(self, blocks: dict[int, Block]) -> None:
        if self._preconditioner.observes:
            for param, grad in self._with_grad():
                self._preconditioner.observe(self.state[param], blocks[id(param)].layouts[0], grad)
        self._move(collect(self.param_groups, blocks, self.state, self._directions, self._copies()))

    def _move(self, collected: Collected, floor: Tensor | None = None) -> None:
        hypers = {key: self._hyper(self.param_groups[key.group]) for key in collected.batches}
        lengths = take_step(collected.batches, hypers, load_kernel(self.config.kernel), floor)
        collected.write_back()
        self._lengths |= {id(place.block): (lengths[place.key], place.blocks) for place in collected.places}

    def _count_step(self) -> None:
        for group in self.param_groups:
            group["step"] += 1
        self._open_gate()

    # What they are made of --------------------------------------------------------------------------------------------

    def _params(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return ((group, param) for group in self.param_groups for param in group["params"])

    def _with_grad(self) -> list[tuple[Tensor, Tensor]]:
        params = (param for _, param in self._params())
        return [(param, param.grad) for param in params if param.grad is not None and param.numel()]

    def _open_gate(self) -> None:
        gate, step = self._statistics.gate, self.param_groups[0]["step"]
        gate.active, gate.turn = self._schedule.refreshes(step), self._schedule.turn(step)

    def _hyper(self, group: dict[str, Any]) -> Hyper:
        numbers = {name: group[name] for name in ("lr", "beta", "beta2", "weight_decay")}
        kind = dict(grafted=self._preconditioner.grafted, nesterov=bool(self.config.nesterov))
        return Hyper(**numbers, decoupled=self.decoupled, **kind)

    def _copies(self) -> dist.ProcessGroup | None:
        """The ranks that take the same step; not inside Join, where some have no data and take none."""
        if not is_distributed(self.ranks) or self.joins:
            return None
        return self.ranks or dist.group.WORLD


class AdaFisherW(AdaFisher):
    """AdaFisher with decoupled weight decay, ``θ ← θ - α (u + κ θ)``: what AdamW is to Adam. See AdaFisher."""

    name = "adafisherw"
    decoupled = True
