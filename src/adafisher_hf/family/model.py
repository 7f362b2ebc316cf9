"""Members of the family that know the model: for its roles, or to run it again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..ranks import check_wrapping


class MadeWithModel:
    """Beside a class of torch's optimizers: it has ``config``, and is made with ``model=…``.

    Attributes:
        model: that the parameters belong to.
    """

    model: nn.Module

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy on a copy of the model."""
        made: Any = self
        model = copy.deepcopy(self.model, memo)
        groups = [{**group, "params": copy.deepcopy(group["params"], memo)} for group in made.param_groups]
        twin = type(made)(groups, model=model, **made.config.to_dict())
        twin.load_state_dict(copy.deepcopy(made.state_dict()))  # torch shares the tensors
        return twin


def model_of(params: Any, given: Sequence[nn.Module | None], complaint: str) -> nn.Module:
    """The model that an optimizer was given, beside its parameters or in place of them; without DDP around it.

    Args:
        given: by whichever name, the first one counts.
        complaint: what is wrong without one.

    Raises:
        ValueError: there is none, or DataParallel or FSDP1 is around it.
        TypeError: it is no module.
    """
    model = next((found for found in given if found is not None), params if isinstance(params, nn.Module) else None)
    if model is None:
        raise ValueError(f"{complaint}: pass model=model")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be the torch module that owns the parameters, not {model!r}")
    # AdamQLR runs it again: DDP's own forward pass would wait for gradients that never come.
    model = model.module if isinstance(model, DistributedDataParallel) else model
    check_wrapping(model)
    return model
