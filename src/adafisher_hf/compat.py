"""Every private name of torch and transformers that this package uses, and what happens where it is gone.

Each says which version it was seen in. Nothing else in the package may use a name with a leading underscore that is not
its own (a test looks).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# torch 2.6 to 2.13. Public optimizers of torch are built on these; without them the import fails.
foreach_add = torch._foreach_add_
foreach_addcmul = torch._foreach_addcmul_
foreach_copy = torch._foreach_copy_
foreach_div = torch._foreach_div
foreach_lerp = torch._foreach_lerp_
foreach_mul = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_pow = torch._foreach_pow
foreach_sub = torch._foreach_sub_

# torch 2.13 has renamed the older one and warns of it.
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


try:  # torch 2.9 to 2.13; its class, torch.optim.Muon, is public, and takes no part of a parameter
    from torch.optim import _muon

    functional_muon: Any = _muon.muon
except ImportError:
    functional_muon = None


@functools.cache
def has_bfloat16_products(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are the faster ones: on accelerators, and on CPUs that do not emulate them.

    torch 2.13, public; older ones do not tell, and there a CPU has none.
    """
    tell = getattr(torch.cpu, "get_capabilities", None)
    return device.type != "cpu" or (tell is not None and bool(tell().get("avx512_bf16", False)))


try:
    from torch.distributed.tensor import DTensor as DTensor
    from torch.distributed.tensor import Replicate as Replicate
except ImportError:  # a torch without distributed
    DTensor = Replicate = None  # type: ignore[assignment, misc]


def in_backward_pass() -> bool:
    """Whether autograd is running now: a forward pass recomputes activations.

    torch 2.6 to 2.13; if it is gone the answer is no, and a recomputed forward pass is taken for a new one.
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1


def next_node_number() -> int:
    """The number that the next autograd node of this thread gets: nodes are numbered in the order of their making.

    torch 2.13; if it is gone there are no numbers, and a recomputed layer counts every token.
    """
    number = getattr(torch.autograd, "_get_sequence_nr", None)
    return 0 if number is None or torch.compiler.is_compiling() else number()


def running_node_number() -> int | None:
    """The number of the autograd node that runs now; None outside of a backward pass.

    torch 2.13; if it is gone the answer is None, and a recomputed layer counts every token.
    """
    current = getattr(torch._C, "_current_autograd_node", None)
    node = None if current is None else current()
    return None if node is None else node._sequence_nr()


def parameters_of(module: nn.Module) -> Mapping[str, Tensor | None]:
    """The parameters that a module holds itself, by attribute; torch 2.6 to 2.13."""
    return module._parameters


def twin_of(module: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any]) -> nn.Module:
    """A module of the same class and attributes with tensors of its own and no hooks; torch 2.6 to 2.13.

    Its ``forward`` is that of its class, whatever has been put in its place (accelerate wraps it).
    """
    twin = object.__new__(type(module))  # FSDP2's own __new__ would build another one
    vars(twin).update(vars(module))
    vars(twin).pop("forward", None)
    vars(twin).update(_parameters=parameters, _buffers=buffers)
    return twin


def drop_hooks(module: nn.Module, unwanted: Any) -> None:
    """Takes off the forward hooks and pre-hooks for which ``unwanted(hook)`` holds; torch 2.6 to 2.13."""
    for hooks, with_kwargs in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if unwanted(hook)]:
            del hooks[key]
            with_kwargs.pop(key, None)


def in_function_transform() -> bool:
    """Whether torch.func (vmap, grad, jvp) is running: tensors are wrappers then, which must not be kept.

    torch 2.6 to 2.13; if it is gone the answer is no, and a transform of a hooked model fails.
    """
    if torch.compiler.is_compiling():
        return False  # the compiler's own interpreter would be taken for one
    functorch = getattr(torch._C, "_functorch", None)
    peek = getattr(functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


def version_of(x: Tensor) -> int:
    """How often a tensor was written to; torch 2.6 to 2.13, documented for custom autograd functions."""
    return x._version


def conv_padding(module: Any) -> list[int]:
    """What a convolution pads its input by, as ``F.pad`` wants it; torch 2.6 to 2.13."""
    return module._reversed_padding_repeated_twice


def looked_up_ids(node: Any) -> Tensor:
    """The indices that an autograd node of an embedding has saved; torch 2.6 to 2.13."""
    return node._saved_indices


def inverse_scale_of(scaler: Any) -> Callable[[], Tensor | float]:
    """What tells 1 / the loss scale of a GradScaler whenever it is asked; torch 2.6 to 2.13.

    ``get_scale()`` is public and waits for the device.
    """

    def inverse() -> Tensor | float:
        # The scaler makes its tensor at the first backward pass.
        return 1.0 if scaler._scale is None else 1.0 / scaler._scale

    return inverse


def is_flat_parameter(parameter: Any) -> bool:
    """Whether a parameter is many that FSDP1 has put into one; torch 2.6 to 2.13."""
    return getattr(parameter, "_is_flat_param", False) is True


def is_managed_by_fsdp(module: nn.Module) -> bool:
    """Whether a module is inside FSDP1 or FSDP2; torch 2.6 to 2.13.

    If the name is gone, a model that FSDP1 has wrapped from outside is noticed only by its parameters.
    """
    return getattr(module, "_is_fsdp_managed_module", False) is True


def is_replica(module: nn.Module) -> bool:
    """Whether a module is a copy that DataParallel has made for one forward pass; torch 2.6 to 2.13."""
    return getattr(module, "_is_replica", False) is True


def has_unreduced_gradients(model: nn.Module) -> bool:
    """Whether FSDP2 holds gradients of micro-batches that it has not synchronised: ``parameter.grad`` is None then.

    torch 2.6 to 2.13. If the names are gone the answer is no: the statistics of micro-batches before the last one
    would be dropped where ``set_requires_gradient_sync(False)`` is used.
    """
    for module in model.modules():
        get_state: Any = getattr(module, "_get_fsdp_state", None)
        state = None if get_state is None else get_state()
        one = getattr(state, "_fsdp_param_group", None)  # before torch had several
        for group in getattr(state, "_fsdp_param_groups", [one] if one is not None else []):
            if getattr(group, "_partial_reduce_output", None) is not None:  # HSDP without its all-reduce
                return True
            if any(_is_unreduced(parameter) for parameter in group.fsdp_params):
                return True
    return False


def _is_unreduced(parameter: Any) -> bool:
    unsharded = getattr(parameter, "_unsharded_param", None)
    return parameter.unsharded_accumulated_grad is not None or (unsharded is not None and unsharded.grad is not None)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, without importing transformers: who has one has imported it.

    transformers 5.2 to 5.23, public; here for the trick.
    """
    utilities = sys.modules.get("transformers.pytorch_utils")
    return utilities is not None and isinstance(module, utilities.Conv1D)


def is_transformers_model(module: nn.Module) -> bool:
    """Whether a module is a PreTrainedModel, without importing transformers: who has one has imported it.

    transformers 5.2 to 5.23, public; here for the trick.
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(module, modeling.PreTrainedModel)


def is_loaded(model: nn.Module) -> bool:
    """Whether a model's weights were loaded, not drawn at random; yes where nobody knows: outside of transformers.

    It goes by ``name_or_path``, which copies and FSDP2 keep. A model that is drawn anew from the config of a loaded one
    has that name as well, and counts as loaded: of the two mistakes the one that changes nothing.
    """
    inner: list[Any] = [module for module in model.modules() if is_transformers_model(module)]
    names = (getattr(holder, "name_or_path", "") for module in inner for holder in (module, module.config))
    return not inner or any(names)


def is_param_wrapper(module: nn.Module) -> bool:
    """Whether a module adapts one parameter of another (peft's ``target_parameters``): its A and B never run.

    peft 0.21, public; without importing peft: who has one has imported it.
    """
    layer = sys.modules.get("peft.tuners.lora.layer")
    return isinstance(module, getattr(layer, "ParamWrapper", ()))


def is_tuner_layer(module: nn.Module) -> bool:
    """Whether a module adapts another, or takes its place (peft 0.21, public; as above)."""
    utils = sys.modules.get("peft.tuners.tuners_utils")
    return isinstance(module, getattr(utils, "BaseTunerLayer", ()))


def is_lora_layer(module: nn.Module) -> bool:
    """Whether a module has LoRA adapters of its own: A, then B, beside what it adapts (peft 0.21, public; as above)."""
    layer = sys.modules.get("peft.tuners.lora.layer")
    return isinstance(module, getattr(layer, "LoraLayer", ())) and not is_param_wrapper(module)


# Fused kernels; transformers 5.2 to 5.23. If the names are gone nothing is switched, and what needs it is refused. ---

IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")


def fused_implementations(model: nn.Module) -> list[tuple[Any, str, str]]:
    """Of the transformers models in a model: config, name of the setting, and its value where that is not eager."""
    configs = {id(module.config): module.config for module in model.modules() if is_transformers_model(module)}
    named = [(config, name, getattr(config, name, None)) for config in configs.values() for name in IMPLEMENTATIONS]
    return [(config, name, value) for config, name, value in named if value not in (None, "eager")]


@contextlib.contextmanager
def eager_implementations(model: nn.Module) -> Iterator[None]:
    """Within it attention and experts run without fused kernels."""
    fused = fused_implementations(model)
    for config, name, _ in fused:
        setattr(config, name, "eager")
    try:
        yield
    finally:
        for config, name, value in fused:
            setattr(config, name, value)


# Mixture-of-experts models; transformers 5.2 to 5.23. ---------------------------------------------------------------


def experts_implementation(module: nn.Module) -> str | None:
    """Which forward pass a layer of experts was told to use; if it is gone, experts use their gradients."""
    return getattr(getattr(module, "config", None), "_experts_implementation", None)


def is_expert_parallel(experts: Any) -> bool:
    """Whether every rank holds some experts only."""
    return bool(getattr(experts, "_is_expert_parallel", False))


def gate_of(experts: Any) -> Any:
    """The function that experts with a gate apply between their two maps."""
    return experts._apply_gate


def grouped_linear() -> Any:
    """transformers' product of rows that are sorted by their experts."""
    from transformers.integrations import moe

    return moe._grouped_linear


# How transformers finds an optimizer by its name. -------------------------------------------------------------------
#
# Where one of these names is gone, the module of transformers that had it cannot be imported after ``adafisher_hf``:
# there is an ImportError that names it. After unregister() it can.


def optimizer_handlers(trainer_optimizer: ModuleType) -> dict[str, Any]:
    """The table from ``optim`` to what makes the optimizer; transformers 5.2 to 5.23."""
    return _named(trainer_optimizer, "_OPTIMIZER_HANDLERS")


# transformers 5.2 to 5.23: what the Trainer calls to save a checkpoint. If it is gone, one that is overwritten in place
# and cut short is taken for a complete one.
SAVE_CHECKPOINT = "_save_checkpoint"


def output_folder(trainer: Any, trial: Any) -> str:
    """Where a Trainer puts its checkpoints, which in a search for hyperparameters is a folder for each trial.

    transformers 5.2 to 5.23; if it is gone: ``output_dir``.
    """
    found = getattr(trainer, "_get_output_dir", None)
    return trainer.args.output_dir if found is None else found(trial=trial)


def experts_functions(moe: ModuleType) -> dict[str, Any]:
    """The forward passes that ``set_experts_implementation`` can choose; transformers 5.2 to 5.23.

    ``ALL_EXPERTS_FUNCTIONS.register`` is public and cannot be undone.
    """
    return _named(moe.ALL_EXPERTS_FUNCTIONS, "_global_mapping")


def has_enum_value(enum: Any, value: str) -> bool:
    """Whether a value or its name is taken; Python 3.10 to 3.14."""
    return value in _named(enum, "_value2member_map_") or value.upper() in enum.__members__


def add_enum_member(enum: Any, value: str) -> Any:
    """A new member of an Enum of strings, ``NAME = "name"``; Python 3.10 to 3.14.

    ``TrainingArguments.optim`` is checked against such an Enum, and the argument parser takes its choices from it.
    """
    member, name = str.__new__(enum, value), value.upper()
    member._name_, member._value_ = name, value
    # What else EnumType gives to a member.
    vars(member).update(__objclass__=enum, _sort_order_=len(_named(enum, "_member_names_")))
    type.__setattr__(enum, name, member)
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[value] = member
    return member


def remove_enum_member(enum: Any, value: str) -> None:
    """Undoes ``add_enum_member``; Python 3.10 to 3.14."""
    name = value.upper()
    enum._member_names_.remove(name)
    del enum._member_map_[name]
    del enum._value2member_map_[value]
    type.__delattr__(enum, name)


def _named(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise ImportError(
            f"this version of transformers has no {getattr(owner, '__name__', type(owner).__name__)}.{name}, which "
            "adafisher_hf needs to register its optimizers: upgrade adafisher_hf, or use transformers 5.2 to 5.23"
        )
    return getattr(owner, name)


# What a command needs to know of a model. ---------------------------------------------------------------------------


def has_model_for(auto_class: Any, config: Any) -> bool:
    """Whether an AutoModel class has a model for a config; transformers 5.2 to 5.23.

    If the name is gone, ``adafisher-hf coverage`` without ``--task`` takes the base model.
    """
    return type(config) in getattr(auto_class, "_model_mapping", {})
