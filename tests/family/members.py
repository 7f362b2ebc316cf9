"""The members of the family and small trainings of theirs, for several tests."""

from __future__ import annotations

import torch
from torch import nn

from adafisher_hf import AdamQLR, FAdam, Muon, SIRFShampoo
from tests.models import next_token_loss, tiny

MEMBERS = {
    "fadam": (FAdam, {"lr": 1e-2}),
    "sirfshampoo": (SIRFShampoo, {"lr": 1e-2, "batch_size": 4, "weight_decay": 0.1}),
    "sirfshampoo, diagonal": (SIRFShampoo, {"lr": 1e-2, "batch_size": 4, "structure": "diagonal"}),
    "adamqlr": (AdamQLR, {"weight_decay": 1e-3}),
    "muon": (Muon, {"lr": 1e-2}),
}
WITH_MODEL = (AdamQLR, Muon)


def make(name, model, **changes):
    cls, knobs = MEMBERS[name]
    return cls(model.parameters(), **({"model": model} if cls in WITH_MODEL else {}), **{**knobs, **changes})


def train(model, optimizer, batches):
    losses = []
    for ids in batches:

        def closure(ids=ids):
            optimizer.zero_grad()
            loss = next_token_loss(model, ids)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def trained(name, batches, dtype=torch.float64, **changes):
    model = tiny(dtype=dtype)
    optimizer = make(name, model, **changes)
    train(model, optimizer, batches)
    return model, optimizer


def everything(model, optimizer):
    found = {f"weight {name}": param.detach().clone() for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        found |= {f"{key} of {name}": value.clone() for key, value in optimizer.state[param].items()}
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def assert_close(a, b, tolerance):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert (p - q).abs().max() <= tolerance, name


def convolutions():
    """Tensors of one, two and four ways, a scalar, and statistics of batches."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Linear(48, 4)
            self.scale = nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return self.head((self.scale * self.norm(self.conv(x))).tanh().flatten(1))

    return Net().double()


def images(count):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(5, 2, 6, 6, generator=generator).double(), torch.randint(0, 4, (5,), generator=generator))
        for _ in range(count)
    ]
