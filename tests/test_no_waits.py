"""A step of any structure does not wait for a device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adafisher_hf import AdaFisherW
from adafisher_hf.update import foreach
from adafisher_hf.update.scalars import surely
from tests.models import tiny, tiny_batches

WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Watch(TorchDispatchMode):
    """Counts what waits for the device."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func in WAITS
        return func(*args, **(kwargs or {}))


def waits_of(model: nn.Module, **knobs) -> list[int]:
    """Of the steps after the first, which asks once whether there is any gradient, and makes the state."""
    optimizer = AdaFisherW(model, **knobs)
    counts = []
    for ids in tiny_batches(4):
        model.zero_grad()
        model(ids).square().mean().backward()
        with Watch() as watch:
            optimizer.step()
        counts.append(watch.waits)
    return counts[1:]


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("structure", ["diagonal", "orthogonal"])
def test_refreshing_or_not_a_step_waits_for_nothing(monkeypatch, structure, state_dtype):
    monkeypatch.setattr(foreach, "surely", lambda mask: False)  # as on a device
    found = waits_of(tiny(), structure=structure, state_dtype=state_dtype, update_warmup=0, update_interval=2)
    assert found == [0, 0, 0]


def test_a_device_is_not_asked_whether_all_is_well():
    mask = torch.ones(3, dtype=torch.bool)
    assert surely(mask) and not surely(mask & torch.tensor([True, False, True]))
    with Watch() as watch:
        assert not surely(mask.to("meta"))
    assert watch.waits == 0
