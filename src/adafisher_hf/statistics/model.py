"""All taps of a model, and what came in for each of its parameters since the last refresh."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..compat import drop_hooks, has_unreduced_gradients, in_backward_pass, in_function_transform
from ..layers import accumulation_dtype
from ..ranks import any_rank, is_distributed, local
from .block import Block, Wanted
from .estimators import make_estimator
from .experts import TAPS, ExpertTap
from .hooks import Hook
from .logits import watch_logits
from .owners import Owner, find_owners, refuse_sparse
from .padding import Padding
from .pairs import find_pairs
from .reduce import reduce_over_ranks
from .roles import Roles
from .tap import Gate, Tap
from .telling import warn

logger = logging.getLogger(__name__)


@dataclass
class ModelStatistics:
    """All blocks of a model, and the hooks that feed them.

    Attributes:
        model: whose modules get hooks; None where gradients are all that is read.
        wanted: by the preconditioner.
        estimator: a name in ``ESTIMATORS``.
        stride: statistics of every so many tokens; None: by the number of tokens.
        ranks: the processes whose statistics are added up; None: all.
        excluded: patterns of the names of hidden matrices that are to be treated like other parameters.
        handles: of all hooks.
    """

    model: nn.Module | None
    wanted: Wanted
    estimator: str = "empirical"
    stride: int | None = 1
    ranks: dist.ProcessGroup | None = None
    excluded: Sequence[str] = ()
    handles: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self._taps: dict[int | tuple[int, str], Tap] = {}
        self._blocks: list[Block] = []
        self.has_measured = False  # any backward pass at all, of this run or of the one that it goes on with
        self._silence_was_told = False
        self.gate = Gate(Padding(), stride=self.stride)
        self._finalizer = weakref.finalize(self, _remove, self.handles)
        if self.model is None:
            return
        _drop_retired(self.model)
        self.handles.append(self.gate.padding.attach(self.model))
        begin = Hook(_begin_forward, self._blocks, self._taps, self.gate)
        self.handles.append(self.model.register_forward_pre_hook(begin, with_kwargs=True))
        self.handles += watch_logits(self.model, make_estimator(self.estimator), self.gate)

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Makes a block for each parameter and hooks the modules that own them.

        Raises:
            ValueError: a parameter that the model does not own, or an embedding with sparse gradients.
        """
        parameters = list(parameters)
        owners = {} if self.model is None else find_owners(self.model, self.wanted.kinds)
        for parameter in parameters:
            if self.model is not None and id(parameter) not in owners:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} does not belong to the given "
                    f"{type(self.model).__name__}: pass the model whose parameters are optimized"
                )
            refuse_sparse(owners.get(id(parameter), []))
        roles = Roles(self.model, self.excluded)
        for pattern in roles.unused_patterns(owners.values()):
            raise ValueError(
                f"{pattern!r} fits no parameter of the model: they have names such as {self._an_example()!r}"
            )
        self._blocks += [self._block(owners.get(id(parameter), []), parameter, roles) for parameter in parameters]
        self._join_pairs()

    def bind(self, parameters: list[Tensor]) -> dict[int, Block]:
        """The blocks by ``id`` of their parameter.

        Args:
            parameters: those that ``add`` got, or what FSDP2 has put in their places.
        """
        for block, parameter in zip(self._blocks, parameters, strict=True):
            block.parameter = parameter
        return {id(block.parameter): block for block in self._blocks}

    def reduce(self) -> None:
        """Adds up what the taps of all ranks have seen, where there are several ranks.

        Raises:
            ValueError: statistics that do not add up.
        """
        if not is_distributed(self.ranks) or not self._taps:
            return
        if not self.wanted.additive:
            raise ValueError("mode='reference' is the published arithmetic of one process: use mode='calibrated'")
        parameters = [block.parameter for block in self._blocks]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        reduce_over_ranks(list(self._taps.values()), dtype, parameters[0].device, self.ranks)

    def has_news(self) -> bool:
        """Whether there was a backward pass since the last refresh: a second ``step()`` finds the old gradients.

        Where no tap can have seen one, because no parameter with a gradient has a tap, there may have been.
        """
        fired = self.fired()
        self.has_measured |= fired
        trained = [block for block in self._blocks if block.parameter.grad is not None]
        if fired or not any(block.taps for block in trained):
            return True
        if not self.has_measured and not self._silence_was_told:
            self._silence_was_told = True
            warn(
                logger,
                "no layer was measured although there are gradients: every parameter uses its gradient alone. Was the "
                "model compiled and run before the optimizer was made, or does a copy of it run? Make the optimizer "
                "first, of the model that is trained",
            )
        return not self.has_measured

    def refuse_foreign_gradients(self) -> None:
        """Refuses a step if all parameters of the optimizer are frozen, and others of the model have gradients.

        Raises:
            ValueError: it names one of them.
        """
        if any(block.parameter.requires_grad for block in self._blocks):
            return  # another optimizer's turn
        held = {id(block.parameter) for block in self._blocks}
        named = [] if self.model is None else self.model.named_parameters()
        for name, parameter in named:
            if parameter.grad is not None and id(parameter) not in held:
                raise ValueError(
                    f"nothing to update: {name!r} has a gradient and is not among the optimizer's parameters, which "
                    "have none. Were adapters added after the optimizer was made (get_peft_model)? Make it afterwards, "
                    "or call add_param_group"
                )

    def warn_of_head_without_forward(self) -> None:
        """Says so where a language model's head got a gradient although its forward did not run."""
        model: Any = self.model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        tap = self._taps.get(id(head))
        weight = getattr(head, "weight", None)
        if tap is None or tap.sums is not None or not self.fired() or weight is None or weight.grad is None:
            return
        warn(
            logger,
            "%s did not run, but got a gradient: a fused loss (Liger's, TRL's) computes it where no hook can see "
            "it. A tied embedding then has the curvature of its look-ups alone, an untied head that of "
            "its gradient. Liger's can be turned off (use_liger_kernel=False), TRL's SFT loss cannot.",
            next(name for name, module in model.named_modules() if module is head),
        )

    def count_tokens(self) -> bool:
        """Where the stride goes by the number of tokens, keeps how many a tap has at its first refresh.

        Waits for the device then.

        Returns:
            Whether there was such a tap.
        """
        new = [tap for tap in self.taps if tap.expected is None and tap.sums is not None]
        if self.stride is not None or not new:
            return False
        counts = torch.stack([tap.sums.tokens.mean().float() for tap in new if tap.sums is not None]).tolist()
        for tap, count in zip(new, counts, strict=True):
            tap.expected = int(count) or None
        return True

    def saw_anything(self, params: Sequence[Tensor]) -> bool:
        """Whether there was a backward pass on any rank: one that was measured, or left a gradient that is not 0."""
        found = self.fired() or any(bool(local(p.grad).any()) for p in params if p.grad is not None)
        if is_distributed(self.ranks):  # each sees its own rows, or its own part of the model
            found = any_rank(found, params[0].device, self.ranks)
        return found

    def end_step(self) -> None:
        """What came in was used parameter by parameter."""
        self.has_measured |= self.fired()
        self.clear()

    def clear(self) -> None:
        """Drops what the taps have summed up."""
        for tap in self._taps.values():
            tap.take()

    def fired(self) -> bool:
        """Whether any backward pass was measured since the last refresh."""
        return any(tap.sums is not None for tap in self._taps.values())

    def close(self) -> None:
        """Takes every hook off the model."""
        self._finalizer()
        self.clear()

    @property
    def closed(self) -> bool:
        """Whether the hooks are off."""
        return not self._finalizer.alive

    @property
    def taps(self) -> list[Tap]:
        """All of them, in the order of the parameters."""
        return list(self._taps.values())

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def _join_pairs(self) -> None:
        """Factors of one adapter; one that comes later (unfrozen in mid-training) finds its partner too."""
        blocks = {id(block.parameter): block for block in self._blocks}
        for a, b in [] if self.model is None else find_pairs(self.model):
            if id(a) in blocks and id(b) in blocks:
                first, second = blocks[id(a)], blocks[id(b)]
                first.side, first.partner, second.side, second.partner = "a", second, "b", first

    def refuse_parted_pairs(self, groups: Iterable[Iterable[Tensor]]) -> None:
        """Refuses the two factors of an adapter in different parameter groups.

        Raises:
            ValueError: it names one of them.
        """
        group_of = {id(parameter): i for i, group in enumerate(groups) for parameter in group}
        for block in self._blocks:
            if block.partner and group_of[id(block.parameter)] != group_of[id(block.partner.parameter)]:
                raise ValueError(
                    f"lora='pair' takes one step for both factors of an adapter, but {block.name!r} and "
                    f"{block.partner.name!r} are in different parameter groups: put both into one (LoRA+'s two "
                    "learning rates need lora='factors')"
                )

    def _an_example(self) -> str:
        names = (
            []
            if self.model is None
            else [name for name, parameter in self.model.named_parameters() if parameter.dim() > 1]
        )
        return names[len(names) // 2] if names else ""

    def _block(self, owners: list[Owner], parameter: Tensor, roles: Roles) -> Block:
        layouts = roles.layouts(parameter, owners)
        taps = [self._tap(owner) for owner in owners if owner.kind is not None]
        for tap, layout in zip(taps, layouts, strict=False):
            tap.want(layout, {getattr(layout, side) for side in self.wanted.sides(layout)})
        name = owners[0].parameter_name if owners else f"parameter {len(self._blocks)}"
        return Block(owners, taps, layouts, parameter, name)

    def _tap(self, owner: Owner) -> Tap:
        assert owner.kind is not None
        part = owner.kind.part(owner.attribute)
        key = id(owner.module) if part is None else (id(owner.module), part)
        tap = self._taps.get(key)
        if tap is None:
            tap = self._make_tap(owner, part)
            tap.dtype = accumulation_dtype(getattr(owner.module, owner.attribute).dtype)
            self._taps[key] = tap
            self.handles.append(tap.attach(owner.module))
        return tap

    def _make_tap(self, owner: Owner, part: str | None) -> Tap:
        assert owner.kind is not None
        arguments = owner.kind, self.gate, self.gate.padding.mask_name(owner.module_name)
        return self.wanted.tap(*arguments) if part is None else ExpertTap(*arguments, part=part)


def _begin_forward(
    blocks: list[Block], taps: dict[Any, Tap], gate: Gate, module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Forgets a backward pass whose gradients were thrown away: a loss scaler that overflowed skips ``step()``.

    A forward pass that finds no gradient at all is the first one after ``zero_grad``.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or in_function_transform():
        return
    gate.last_input = None  # the next mask may be another one
    gate.sequence = _sequence_length(args, kwargs)
    if in_backward_pass():
        return  # recomputed in the middle of it
    if not any(block.has_gradient() for block in blocks) and not has_unreduced_gradients(module):
        for tap in taps.values():
            tap.take()


def _sequence_length(args: tuple, kwargs: dict[str, Any]) -> int | None:
    ids = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")]
    lengths = [x.shape[1] for x in (*args[:1], *ids) if isinstance(x, Tensor) and x.dim() > 1]
    return lengths[0] if len(lengths) == 1 else None


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _drop_retired(model: nn.Module) -> None:
    """Takes off the hooks that a copy of a model has brought along: their taps measure nothing."""
    for module in model.modules():
        drop_hooks(module, lambda hook: getattr(getattr(hook, "__self__", hook), "retired", False) is True)
        taps = vars(module).get(TAPS, [])
        taps[:] = [tap for tap in taps if not tap.retired]
