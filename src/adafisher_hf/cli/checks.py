"""What ``adafisher-hf doctor`` looks at: each check tells what it sees, and whether training can start with that."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.requirements import Requirement

from ..integrations.entries import OPTIMIZERS
from .errors import CommandError, one_line
from .models import build_on_meta
from .uncovered import uncovered

if TYPE_CHECKING:
    import torch
    from torch import nn

DISTRIBUTION = "adafisher-hf"
PACKAGES = ("torch", "transformers", "accelerate", "huggingface_hub", "wrapt", "peft", "bitsandbytes", "trl")


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        what: was looked at.
        seen: there.
        fine: whether training can start with it.
    """

    what: str
    seen: str
    fine: bool = True


def of_machine() -> Iterator[Finding]:
    """Versions, registration, kernel and devices."""
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    needed = _needed()
    for package in PACKAGES:
        yield _version(package, needed.get(package))
    yield _looked_at("registration", _registration)
    yield _looked_at("kernel", _kernel)
    for device in _devices():
        yield _looked_at(device.type, functools.partial(_step, device))


def of_model(name: str, task: str, optim: str, optim_args: str | None) -> Iterator[Finding]:
    """What an optimizer does with a model, without weights; it is made as the Trainer would make it."""
    try:
        model = build_on_meta(name, task)
    except CommandError as error:
        yield Finding("model", str(error), fine=False)
        return
    yield _looked_at("model", lambda: _described(model))
    yield _looked_at("weights", lambda: _weights(model))
    yield _looked_at("curvature", lambda: _curvature(model))
    yield _looked_at(f"optim={optim}", lambda: _optimizer(model, optim, optim_args))


def _looked_at(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, look())
    except Exception as error:  # whatever is broken here: that is the finding
        return Finding(what, one_line(error), fine=False)


def _needed() -> dict[str, Requirement]:
    """What the package asks for, before what an extra asks; of a source tree that is not installed nothing is known."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = sorted(map(Requirement, lines), key=lambda requirement: requirement.marker is None)
    return {requirement.name: requirement for requirement in requirements}


def _version(package: str, needed: Requirement | None) -> Finding:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "not installed", fine=needed is None or needed.marker is not None)
    if needed is None or needed.specifier.contains(version, prereleases=True):
        return Finding(package, version)
    return Finding(package, f"{version}, needed is {needed.specifier}", fine=False)


def _registration() -> str:
    from transformers import TrainingArguments

    for name in OPTIMIZERS:
        TrainingArguments(output_dir="unused", optim=name)
    return f"TrainingArguments takes {', '.join(OPTIMIZERS)}"


def _kernel() -> str:
    from ..update import load_kernel

    return f"auto takes {load_kernel('auto').__name__.rpartition('.')[2]}"


def _devices() -> list[torch.device]:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [torch.device("cpu"), *([] if accelerator is None else [accelerator])]


def _step(device: torch.device) -> str:
    """Takes one, with the kernel that is the default there."""
    import torch
    from torch import nn

    from ..optimizer import AdaFisherW

    model = nn.Linear(4, 4).to(device)
    optimizer = AdaFisherW(model, lr=0.1)
    model(torch.ones(2, 4, device=device)).square().sum().backward()
    optimizer.step()
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise FloatingPointError("a step of AdaFisherW leaves weights that are not finite")
    return f"{_name(device)}, a step of AdaFisherW is fine"


def _name(device: torch.device) -> str:
    import torch

    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads"
    name: Any = getattr(torch.get_device_module(device), "get_device_name", lambda: device.type)
    return f"{torch.accelerator.device_count()} × {name()}"


def _described(model: nn.Module) -> str:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(count for count, trains in counts if trains)
    return f"{type(model).__name__}, {sum(count for count, _ in counts):,} numbers, {trained:,} of them trained"


def _weights(model: nn.Module) -> str:
    """Their dtype, or how they are quantized."""
    given = getattr(getattr(model, "config", None), "quantization_config", None)
    if given is None:
        return ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}))
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer: Any = AutoHfQuantizer.from_config(given)
    method: Any = quantizer.quantization_config.quant_method
    method = getattr(method, "value", method)
    if hasattr(model, "peft_config"):
        if not quantizer.is_trainable:
            raise ValueError(f"quantized with {method}, which transformers trains no adapters on")
    elif not getattr(quantizer, "is_qat_trainable", False):
        raise ValueError(f"quantized with {method}: such weights are not trained, adapters on them are (docs/lora.md)")
    return f"quantized with {method}"


def _curvature(model: nn.Module) -> str:
    from ..insight.coverage import coverage, summarize

    rows = coverage(model)
    shares = ", ".join(f"{kind.kind} {kind.share:.1%}" for kind in summarize(rows))
    names = uncovered(rows).names
    return f"{shares}; by gradient alone: {names}" if names else shares


def _optimizer(model: Any, optim: str, optim_args: str | None) -> str:
    from transformers import Trainer, TrainingArguments

    from ..insight.memory import state_bytes

    args = TrainingArguments(output_dir="unused", optim=optim, optim_args=optim_args)
    cls, arguments = Trainer.get_optimizer_cls_and_kwargs(args, model)
    total = sum(state_bytes(cls, model, **arguments).values())
    return f"takes this model, with a state of {total:,} bytes"
