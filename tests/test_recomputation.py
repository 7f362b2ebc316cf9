"""Activation checkpointing and torch.compile: whatever runs twice, or is traced, the trajectory is the same."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics import compiled as compiled_module
from tests.models import llama
from tests.test_invariance import STRUCTURES, every_structure

IDS = torch.arange(64).view(4, 16)


def trajectory(structure, prepare=lambda model: model):
    model = llama().double().train()
    knobs = dict(lr=1e-2, update_warmup=3, update_interval=2) | STRUCTURES[structure]
    optimizer = AdaFisherW(model.parameters(), model=model, **knobs)
    network = prepare(model)
    for i in range(6):
        model.zero_grad()
        ids = IDS.roll(i)
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every_structure
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(structure, reentrant):
    recomputed = []

    def prepare(model):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        model.model.layers[0].mlp.register_forward_hook(lambda *_: recomputed.append(1))
        return model

    assert torch.equal(trajectory(structure, prepare), trajectory(structure))
    assert len(recomputed) == (12 if reentrant else 6)  # the other kind stops as soon as it has what it needs


@pytest.mark.parametrize("structure", ["diagonal", "strided"])
def test_compiling_changes_nothing(structure):
    torch.compiler.reset()
    compiled = trajectory(structure, lambda model: torch.compile(model, backend="eager"))
    torch.testing.assert_close(compiled, trajectory(structure), rtol=1e-9, atol=1e-12)


def test_compiling_survives_a_second_import():
    torch.compiler.reset()

    def prepare(model):
        importlib.reload(compiled_module)
        return torch.compile(model, backend="eager")

    torch.testing.assert_close(trajectory("diagonal", prepare), trajectory("diagonal"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "orthogonal"])
def test_compiled_without_a_break_and_never_again(structure):
    """Refreshing steps and others share one graph."""
    torch.compiler.reset()
    model = llama()
    optimizer = AdaFisherW(model, lr=1e-2, update_warmup=2, update_interval=3, structure=structure)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for i in range(6):
        model.zero_grad()
        compiled(input_ids=IDS.roll(i), labels=IDS.roll(i)).loss.backward()
        optimizer.step()
    assert counter.frame_count == 1


def test_compiled_padding_is_left_out():
    torch.compiler.reset()
    mask = (torch.arange(16) < torch.tensor([16, 9, 12, 16])[:, None]).long()
    labels = IDS.where(mask.bool(), -100)
    curvatures = []
    for backend in (None, "aot_eager"):
        model = llama().double()
        optimizer = AdaFisherW(model, lr=1e-2)
        network = torch.compile(model, backend=backend, fullgraph=True) if backend else model
        network(input_ids=IDS, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        curvatures.append([optimizer.curvature(p) for p in model.parameters()])
    for eager, compiled in zip(*curvatures, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-8)
