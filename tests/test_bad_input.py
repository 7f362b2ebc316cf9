"""Wrong input to the optimizer: one clear error that names the mistake and the fix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisher, AdaFisherW
from tests.models import next_token_loss, tiny, tiny_batches


def test_no_model():
    with pytest.raises(ValueError, match="needs the model.*pass model=model"):
        AdaFisherW(tiny().parameters())


def test_nothing_trainable():
    model = tiny().requires_grad_(False)
    for params in (model, model.parameters(), [p for p in model.parameters() if p.requires_grad]):
        with pytest.raises(ValueError, match="nothing trainable"):
            AdaFisherW(params, model=model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_foreign_parameters():
    with pytest.raises(ValueError, match="does not belong to the given Tiny"):
        AdaFisher(nn.Linear(2, 2).parameters(), model=tiny())


def test_sparse_embedding():
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True))
    with pytest.raises(ValueError, match=r"0\.weight would get sparse gradients.*sparse=False"):
        AdaFisherW(model.parameters(), model=model)


def test_complex_parameter():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="complex parameters are not supported"):
        AdaFisherW(model.parameters(), model=model)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"mode": "papers"}, "papers"),
        ({"structure": "dense"}, "dense"),
        ({"gamma": 1.5}, "gamma"),
        ({"damping": -1.0}, "damping"),
        ({"update_interval": 0}, "update_interval"),
        ({"lr": -1.0}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"beta": 1.0}, "beta"),
    ],
)
def test_out_of_range(knobs, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        AdaFisherW(model.parameters(), model=model, **knobs)


def test_unknown_knob_names_the_closest():
    model = tiny()
    with pytest.raises(TypeError, match="gama.*gamma"):
        AdaFisherW(model.parameters(), model=model, gama=0.9)


def test_bad_group_leaves_the_optimizer_as_it_was():
    model = tiny()
    optimizer = AdaFisherW([model.up.weight], model=model)
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [model.gate], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [model.gate]})


@pytest.mark.parametrize("form", ["tensors", "named", "groups", "model"])
def test_params_take_every_form(form):
    model = tiny()
    params = {
        "tensors": lambda: model.parameters(),
        "named": lambda: model.named_parameters(),
        "groups": lambda: [{"params": model.parameters(), "lr": 1e-2}],
        "model": lambda: model,
    }[form]()
    optimizer = AdaFisherW(params, model=None if form == "model" else model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_curvature_of_a_foreign_tensor():
    model = tiny()
    with pytest.raises(ValueError, match="no parameter of this optimizer"):
        AdaFisherW(model.parameters(), model=model).curvature(torch.zeros(2))


def trained_state(**knobs):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, **knobs)
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    return optimizer.state_dict()


def adamw_state():
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (adamw_state, "not saved by AdaFisherW: resume with the optimizer that saved it"),
        (lambda: trained_state(mode="paper"), "mode is paper, not calibrated; .*sigma_sq is missing, not"),
        (lambda: trained_state(structure="kronecker"), r"at 'gate', col_basis is \(1, 6, 6\), not there"),
    ],
    ids=["adamw", "mode", "structure"],
)
def test_a_state_saved_otherwise_is_refused_and_nothing_is_loaded(saved, message):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved())
    assert not optimizer.state


def test_reference_and_paper_states_have_the_same_shapes_and_are_still_told_apart():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, mode="reference")
    with pytest.raises(ValueError, match="mode is paper, not reference"):
        optimizer.load_state_dict(trained_state(mode="paper"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": "1e-3"}, "lr must be a number, not '1e-3'"),
        ({"weight_decay": None}, "weight_decay must be a number, not None"),
        ({"damping": None}, "damping must be a number"),
        ({"beta": "0.9"}, "beta must be a number"),
    ],
)
def test_a_group_that_is_refused_leaves_nothing_behind(change, message):
    model = tiny()
    optimizer = AdaFisherW([model.up.weight], model=model)
    with pytest.raises(TypeError, match=message):
        optimizer.add_param_group({"params": [model.down.weight], **change})
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    assert len(optimizer.param_groups) == 1


def test_a_foreign_parameter_after_a_good_one_leaves_nothing_behind():
    model = tiny()
    optimizer = AdaFisherW([model.up.weight], model=model)
    with pytest.raises(ValueError, match="does not belong"):
        optimizer.add_param_group({"params": [model.down.weight, nn.Parameter(torch.ones(2))]})
    assert len(list(optimizer._statistics)) == 1 and not model.down._forward_hooks


def test_the_model_is_a_module():
    with pytest.raises(TypeError, match="model must be the torch module that owns the parameters, not 'gpt2'"):
        AdaFisherW(tiny().parameters(), model="gpt2")


def test_a_group_may_be_a_single_tensor():
    model = tiny()
    optimizer = AdaFisherW([{"params": model.up.weight}], model=model)
    assert optimizer.param_groups[0]["params"] == [model.up.weight]


def test_weights_tied_after_the_optimizer_was_made():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = AdaFisherW(model.parameters(), model=model)
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="no longer the model's: it was replaced or tied after the optimizer was made"):
        optimizer.step()
