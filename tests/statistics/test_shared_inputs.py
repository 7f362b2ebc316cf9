"""Layers that read one tensor share its second moment, and only where it is the same: alone or together, one factor."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

from adafisher_hf import AdaFisherW
from adafisher_hf.layers import KINDS

CONVOLUTIONS = {
    "kernel": dict(kernel_size=5, padding=1),
    "stride": dict(kernel_size=3, padding=1, stride=2),
    "padding": dict(kernel_size=3, padding=0),
    "dilation": dict(kernel_size=3, padding=1, dilation=2),
    "padding_mode": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "groups": dict(kernel_size=3, padding=1, groups=2),
}
conv = partial(nn.Conv2d, 4, 6, kernel_size=3, padding=1)


class Branches(nn.Module):
    """All branches read the same tensor."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return [branch(x) for branch in self.branches]


def factors(branches, x):
    model = Branches(*copy.deepcopy(branches)).double()
    optimizer = AdaFisherW(model, structure="kronecker", lr=0.0, token_stride=1)
    sum(y.square().sum() for y in model(x)).backward()
    optimizer.step()
    return [optimizer.state[branch.weight] for branch in model.branches]


def assert_alone_and_together_are_the_same(branches, x):
    together = factors(branches, x)
    for branch, state in zip(branches, together, strict=True):
        (alone,) = factors([branch], x)
        for key in alone:
            if "factor" in key:
                torch.testing.assert_close(
                    state[key], alone[key], rtol=1e-12, atol=0.0, msg=lambda m, k=key: f"{k}: {m}"
                )


@pytest.mark.parametrize("other", CONVOLUTIONS)
def test_convolutions(other):
    torch.manual_seed(0)
    first, second = conv(), nn.Conv2d(4, 6, **CONVOLUTIONS[other])
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert_alone_and_together_are_the_same([first, second, conv(), nn.Conv2d(4, 6, **CONVOLUTIONS[other])], x)


def test_embeddings():
    torch.manual_seed(0)
    branches = [nn.Embedding(9, 4), nn.Embedding(9, 4, padding_idx=2), nn.Embedding(12, 4), nn.Embedding(9, 5)]
    assert_alone_and_together_are_the_same(branches, torch.randint(0, 9, (3, 7)))


def test_linear_layers_beside_convolutions():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert_alone_and_together_are_the_same([nn.Linear(6, 3), nn.Linear(6, 2, bias=False), conv(), conv()], x)


def test_a_tensor_that_was_written_to_is_measured_again():
    class Rewritten(nn.Module):
        """Its second layer reads the tensor that the first has read, with other values in it."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x):
            self.first(x)  # its result is not used: autograd would refuse the write
            return self.second(x.mul_(torch.arange(1.0, 5.0)))

    torch.manual_seed(0)
    model = Rewritten().double()
    optimizer = AdaFisherW(model, structure="kronecker", lr=0.0, token_stride=1)
    x = torch.randn(8, 4, dtype=torch.float64)
    model(x).square().sum().backward()
    optimizer.step()
    state = optimizer.state[model.second.weight]
    moment = x.mT @ x
    torch.testing.assert_close(
        state["col_factor_0"][0] / state["factor_weight_0"], moment / moment.diagonal().mean(), rtol=1e-9, atol=1e-12
    )


def test_who_says_what_makes_h_says_all_of_it():
    """The law: with the same key and input, two modules have the same h; whatever attribute they differ in."""
    torch.manual_seed(0)
    makers = [
        *(partial(nn.Conv2d, 4, 6, **options) for options in CONVOLUTIONS.values()),
        conv,
        partial(nn.Embedding, 9, 4),
        partial(nn.Embedding, 9, 4, padding_idx=2),
        partial(nn.Embedding, 12, 4),
        partial(nn.Linear, 6, 3),
        partial(nn.Linear, 6, 5, bias=False),
    ]
    image, ids = torch.randn(2, 4, 6, 6), torch.randint(0, 9, (3, 7))
    modules = [make() for make in makers for _ in range(2)]
    for a in modules:
        for b in modules:
            kind = next(kind for kind in KINDS if kind.matches(a))
            if a is b or not kind.matches(b) or kind.input_key(a) != kind.input_key(b):
                continue
            x = ids if isinstance(a, nn.Embedding) else image
            h = [kind.inputs(module, (x,), module(x)) for module in (a, b)]
            if isinstance(a, nn.Embedding):
                assert h[0].size == h[1].size and torch.equal(h[0].ids, h[1].ids) and a.padding_idx == b.padding_idx
            else:
                assert torch.equal(*h)


def test_dilated_convolutions_of_a_segmentation_head_beside_each_other():
    """MobileViT's ASPP: one tensor into convolutions of several dilations; it crashed."""
    config = MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 32], num_attention_heads=2,
        aspp_out_channels=8, num_labels=3,
    )  # fmt: skip
    model = MobileViTForSemanticSegmentation(config)
    optimizer = AdaFisherW(model, structure="kronecker", lr=1e-3)
    labels = torch.randint(0, 3, (2, 64, 64))
    for _ in range(2):
        optimizer.zero_grad()
        model(pixel_values=torch.randn(2, 3, 64, 64), labels=labels).loss.backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
