"""A saved parameter group beside the running optimizer's: whether it is whole, and whose options count.

A state is made for some options, those with ``fixed``: with others it would not fit, or mean something else. All other
options may change when a run is resumed, and then the running optimizer's own count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..preconditioners import find
from .adafisher import AdaFisherConfig
from .groups import GROUP_KNOBS, check_numbers
from .knobs import knobs_of, shown
from .strings import write

Group = dict[str, Any]
NEEDED = ("params", "step", "lr", "weight_decay", *GROUP_KNOBS)


def written(config: AdaFisherConfig, group: Mapping[str, Any]) -> str:
    """The options of a group as a text: those of the optimizer, and its own."""
    own = {name: group[name] for name in GROUP_KNOBS}
    return dataclasses.replace(config, **own).to_optim_args(explicit=True)


def check_saved_groups(saved: Any, groups: Sequence[Group], name: str) -> None:
    """Checks the parameter groups of a state, each by itself.

    Args:
        saved: a ``state_dict()``, or whatever was found in its place.
        groups: of the optimizer that is to take it.
        name: of its class, for the errors.

    Raises:
        ValueError: another optimizer's, something is missing or out of range, or groups that are not like ``groups``.
        TypeError: something of a wrong type.
    """
    for key, kind in (("state", dict), ("param_groups", list)):
        if not isinstance(saved, dict) or key not in saved:
            raise ValueError(f"no optimizer state: it has no {key!r} (optimizer.state_dict() makes one)")
        if not isinstance(saved[key], kind):
            raise TypeError(f"no optimizer state: its {key!r} is no {kind.__name__}, but {shown(saved[key])}")
    found = saved["param_groups"]
    if not all(isinstance(group, dict) and _is_written(group.get("config")) for group in found):
        raise ValueError(
            f"this optimizer state was not saved by {name}: resume with the optimizer that saved "
            "it, or start a new run from the checkpoint's weights"
        )
    if len(found) != len(groups):
        raise ValueError(f"this optimizer state has {len(found)} parameter groups, not {len(groups)}")
    for i, (group, own) in enumerate(zip(found, groups, strict=True)):
        _check_group(group, own, f"this optimizer state is damaged: group {i}")
    if len({group["step"] for group in found}) > 1:
        steps = ", ".join(str(group["step"]) for group in found)
        raise ValueError(f"this optimizer state is damaged: its groups are at different steps: {steps}")
    _check_parameters(saved)


def fixed_options(group: Group, running: Group) -> tuple[dict[str, str], dict[str, str]]:
    """The options that a state is made for, as a saved group and as the running one have them.

    Also those that this version does not know: what they mean is not known either. One that the saving version did not
    have was as its default is.
    """
    saved, own = _options(group["config"]), _options(running["config"])
    names = [name for name in {**saved, **own} if _is_fixed(name) and name not in _unused(own)]
    saved = {**{name: _default(name) for name in names if name in knobs_of(AdaFisherConfig)}, **saved}
    return {name: saved[name] for name in names if name in saved}, {name: own[name] for name in names if name in own}


def changed_options(group: Group, running: Group) -> dict[str, tuple[str, str]]:
    """Which other options were changed since: from what, to what."""
    saved, own = _options(group["config"]), _options(running["config"])
    names = [name for name in own if not _is_fixed(name) and name not in _unused(own)]
    return {name: (saved[name], own[name]) for name in names if name in saved and saved[name] != own[name]}


def resumed(group: Group, running: Group) -> Group:
    """A saved group with the options that the running optimizer was made with.

    What a schedule has moved since the start, such as the learning rate, is part of the state and stays.
    """
    changed = changed_options(group, running)
    own = {name: running[name] for name in GROUP_KNOBS if name in changed}
    result = {**group, **own, "config": running["config"], "optimizer": running["optimizer"]}
    if "beta" in changed and "momentum" not in running:
        result.pop("momentum", None)  # of a schedule that this run does not have
    return result


def _check_group(group: Group, own: Group, where: str) -> None:
    for key in NEEDED:
        if key not in group:
            raise ValueError(f"{where} has no {key!r}")
    params, step = group["params"], group["step"]
    if not (isinstance(params, list) and len(params) == len(own["params"])):
        count = len(params) if isinstance(params, list) else shown(params)
        raise ValueError(f"{where} has {count} parameters, not {len(own['params'])}: of another model?")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"{where}: step must be a whole number, at least 0, not {shown(step)}")
    saved_by = group.get("optimizer", own["optimizer"])  # the first versions did not say
    if saved_by != own["optimizer"]:
        raise ValueError(
            f"this optimizer state was saved by {shown(saved_by, quoted=False)}, not by {own['optimizer']}, whose "
            "weight decay is another: resume with the optimizer that saved it"
        )
    try:
        check_numbers(group)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None


def _check_parameters(saved: dict[str, Any]) -> None:
    numbers = [i for group in saved["param_groups"] for i in group["params"]]
    if not all(isinstance(i, int | str) for i in numbers):
        raise TypeError("this optimizer state is damaged: its parameters must be counted with whole numbers")
    for i, tensors in saved["state"].items():
        if i not in numbers:
            raise ValueError(f"this optimizer state is damaged: it has the state of a parameter {i} that no group has")
        if not isinstance(tensors, dict):
            raise TypeError(f"this optimizer state is damaged: that of parameter {i} is {shown(tensors)}")


def _is_written(config: Any) -> bool:
    return isinstance(config, str) and all("=" in pair for pair in config.split(","))


def _options(config: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in config.split(","))


def _default(name: str) -> str:
    return write({name: knobs_of(AdaFisherConfig)[name].default}).partition("=")[2]


def _is_fixed(name: str) -> bool:
    knob = knobs_of(AdaFisherConfig).get(name)
    return knob is None or knob.metadata["fixed"]


def _unused(options: Mapping[str, str]) -> tuple[str, ...]:
    return find(options["mode"], options["structure"]).without
