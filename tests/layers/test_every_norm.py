"""Every norm of transformers: x̂ is what its weight multiplies, whatever the class is called.

The oracle is autograd: with δ for the gradient of the output, the gradient of the weight is Σ δ x̂ and that of the bias
Σ δ, token by token. Whether a weight is applied as w or as 1 + w makes no difference there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch
import transformers.models
from torch import nn

from adafisher_hf.layers import KINDS

WIDTH = 8
ARGUMENTS = (
    ((WIDTH,), {}),
    (((WIDTH,),), {}),
    ((WIDTH,), {"data_format": "channels_first"}),
    ((2, WIDTH), {}),
    ((2, WIDTH // 2), {}),
    ((), {}),
)
SHAPES = ((2, 3, WIDTH), (2, WIDTH, 3, 5), (2, WIDTH, 3), (2, 3, 2, WIDTH // 2), (6, WIDTH))


def norm_classes():
    """By "model.Class"; what cannot be imported here is left out."""
    found = {}
    for package in pkgutil.iter_modules(transformers.models.__path__):
        folder = f"{transformers.models.__path__[0]}/{package.name}"
        for file in pkgutil.iter_modules([folder]):
            if file.name.startswith("modeling_"):
                try:
                    module = importlib.import_module(f"transformers.models.{package.name}.{file.name}")
                except ImportError:
                    continue
                for name, cls in vars(module).items():
                    if inspect.isclass(cls) and cls.__module__ == module.__name__ and name.endswith("Norm"):
                        found[f"{package.name}.{name}"] = cls
    return found


def instances(cls):
    """One for every way to construct it that works, with weights that are not 1."""
    for args, kwargs in ARGUMENTS:
        try:
            module = cls(*args, **kwargs)
        except Exception:
            continue
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=0.5)
        yield module


def kind_of(module):
    return next((kind for kind in KINDS if kind.matches(module)), None)


def verdict(module, x):
    """Right or wrong; "gradient" where it does without x̂; None where the module does not take such an input."""
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        return "no weight"
    try:
        y = module(x)
    except Exception:
        return None
    if not isinstance(y, torch.Tensor) or not y.requires_grad:
        return None
    kind = kind_of(module)
    if kind is None or kind.layout(module, "weight") is None:
        return "gradient"
    try:
        normalised = kind.inputs(module, (x,), y)
    except RuntimeError:
        return "wrong"
    if normalised is None:
        return "gradient"
    delta = torch.randn_like(y)
    grad, *grads = torch.autograd.grad(y, list(module.parameters()), delta)
    rows = kind.outputs(module, delta)
    expected = (rows * normalised).sum((0, 1))
    right = torch.allclose(grad.flatten(), expected.to(grad), rtol=1e-3, atol=1e-4)
    if grads:
        right &= torch.allclose(grads[0].flatten(), rows.sum((0, 1)), rtol=1e-3, atol=1e-4)
    return "right" if right else "wrong"


def verdicts(cls):
    """Of every way to construct it and every shape that it takes."""
    found = []
    for module in instances(cls):
        for shape in SHAPES:
            torch.manual_seed(0)
            found.append(verdict(module, torch.randn(shape) * 3 + 1))
    return {v for v in found if v is not None}


@pytest.mark.slow
def test_every_norm_of_transformers(capsys):
    classes = norm_classes()
    seen = {name: verdicts(cls) for name, cls in classes.items()}
    unknown = sorted(name for name, v in seen.items() if not v)
    gradient = sorted(name for name, v in seen.items() if v == {"gradient"})
    with capsys.disabled():
        print(f"\n{len(classes)} norms; could not be tried: {', '.join(unknown)}")
        print(f"use their gradients: {', '.join(gradient)}")
    assert sorted(name for name, v in seen.items() if "wrong" in v) == []
    assert len(classes) > 200
    assert len(unknown) < 25
    assert len(gradient) < 20
