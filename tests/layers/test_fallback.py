"""How a parameter lies that no hook understands: few blocks, few numbers, and every expert by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, XLNetConfig

from adafisher_hf import AdaFisherW
from adafisher_hf.layers import gradient_layout


class ManyExperts(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((768, 12, 64), (768, 768)),  # XLNet's and Funnel's heads
        ((1, 197, 768), (197, 768)),  # position tables
        ((1, 1, 768), (768, 1)),  # class tokens
        ((16, 40, 30), (640, 30)),  # Moshi's matrix a codebook
        ((8, 3, 2, 4, 4), (24, 32)),
        ((5, 1), (5, 1)),
        ((7,), (7, 1)),
        ((), (1, 1)),
    ],
)
def test_one_matrix(shape, matrix):
    layout = gradient_layout(torch.empty(shape), nn.Module())
    assert layout.shape == (1, *matrix) and not layout.independent


@given(st.lists(st.integers(1, 9), max_size=5))
def test_nothing_is_lost_and_one_dimension_is_the_parameters_first(shape):
    """The law that sharding needs: rows are whole slices of the first dimension, however they are cut."""
    layout = gradient_layout(torch.empty(shape), None)
    rows, cols = layout.shape[1:]
    assert rows * cols == torch.Size(shape).numel() and (not shape or rows % shape[0] == 0 or shape[0] == 1)


def test_experts_are_blocks_of_their_own():
    assert gradient_layout(torch.empty(4, 6, 5), ManyExperts((4, 6, 5))).independent


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_heads_in_three_dimensions_are_no_experts(structure):
    model = AutoModel.from_config(XLNetConfig(vocab_size=32, d_model=24, n_layer=2, n_head=3, d_inner=32))
    optimizer = AdaFisherW(model, structure=structure)
    model(input_ids=torch.arange(2, 14).view(2, 6)).last_hidden_state.square().mean().backward()
    optimizer.step()
    assert all(len(state["step"]) == 1 for state in optimizer.state.values())
    assert all(torch.isfinite(p).all() for p in model.parameters())
