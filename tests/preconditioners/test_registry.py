"""A structure is one entry of a registry: an option by its name, with or without a model, split over ranks or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherConfig, AdaFisherW
from adafisher_hf.config.knobs import help_of
from adafisher_hf.preconditioners import PRECONDITIONERS, Entry
from adafisher_hf.preconditioners.diagonal import Diagonal
from tests.models import Routed, next_token_loss, tiny, tiny_batches
from tests.test_invariance import train


class GradientOnly(Diagonal):
    """Row and column means of g²: needs no hook, and so no model."""

    reads = "gradient"


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(PRECONDITIONERS, "toy", Entry(GradientOnly, defaults=dict(damping=0.7, update_warmup=5)))


def test_it_is_an_option_with_defaults_of_its_own():
    config = AdaFisherConfig.from_optim_args("structure=toy")
    assert (config.resolved().damping, config.resolved().update_warmup) == (0.7, 5)
    assert "'toy'" in help_of(AdaFisherConfig)
    with pytest.raises(ValueError, match="needs mode='calibrated'"):
        AdaFisherConfig(structure="toy", mode="paper")


def test_gradients_alone_need_no_model_and_leave_no_hook():
    model, other = tiny(), tiny()
    alone, beside = AdaFisherW(model.parameters(), structure="toy"), AdaFisherW(other, structure="toy")
    for module in [*model.modules(), *list(other.modules())[1:]]:  # the model itself says when a pass begins
        assert not module._forward_hooks and not module._forward_pre_hooks, type(module)
    for optimizer in (alone, beside):
        assert not optimizer._statistics.taps
    first, second = train(model, alone, tiny_batches(6)), train(other, beside, tiny_batches(6))
    assert torch.equal(first, second) and not torch.equal(first, train(tiny(), AdaFisherW(tiny()), []))
    assert torch.isfinite(alone.curvature(model.up.weight)).all()
    assert alone.summary()["gradient"]["update_ratio"] > 0


def test_gradients_alone_are_rows_and_columns_of_the_squared_gradient():
    layer = nn.Linear(4, 3, bias=False).double()
    optimizer = AdaFisherW(layer.parameters(), structure="toy")
    layer(torch.randn(5, 4, dtype=torch.float64)).square().sum().backward()
    squared = layer.weight.grad.square()
    optimizer.step()
    factored = torch.outer(squared.sum(1), squared.sum(0))
    torch.testing.assert_close(optimizer.curvature(layer.weight), factored / factored.mean() + 0.7)


def test_it_resumes_bitwise_and_is_copied():
    import copy

    model = Routed().double()
    optimizer = AdaFisherW(model.parameters(), structure="toy", lr=1e-2)
    batches = tiny_batches(6)

    def run(model, optimizer, batches):
        for ids in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten().roll(1)).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    run(model, optimizer, batches[:3])
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert torch.equal(run(model, optimizer, batches[3:]), run(twin_model, twin, batches[3:]))


def test_what_reads_taps_needs_the_model():
    with pytest.raises(ValueError, match="needs the model for its curvature hooks"):
        AdaFisherW(tiny().parameters())
    assert next_token_loss(tiny(), tiny_batches(1)[0]).isfinite()
