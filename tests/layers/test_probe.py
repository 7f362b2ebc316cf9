"""A norm is tried, not believed: nothing of it changes, it costs nothing the second time, and ranks agree."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTLayerNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.squeezebert.modeling_squeezebert import SqueezeBertLayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from adafisher_hf import AdaFisherW, coverage
from adafisher_hf.layers.norm import RMSNormKind
from adafisher_hf.layers.probe import form_by_name, form_of, scale_to_rms, standardise


class CountedRMSNorm(LlamaRMSNorm):
    calls = 0

    def forward(self, x):
        CountedRMSNorm.calls += 1
        return super().forward(x)


class FailsRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        raise RuntimeError("needs a GPU")


class DrawsRMSNorm(LlamaRMSNorm):
    """Draws numbers and counts its calls in a buffer."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return super().forward(x + 0 * torch.rand_like(x))


class OtherRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return self.weight * x.abs()


@pytest.mark.parametrize(
    ("module", "normalise", "axis"),
    [
        (CohereLayerNorm(8), standardise, -1),
        (ImageGPTLayerNorm((8,)), scale_to_rms, -1),
        (Gemma3RMSNorm(8), scale_to_rms, -1),
        (T5LayerNorm(8), scale_to_rms, -1),
        (nn.RMSNorm(8), scale_to_rms, -1),
        (LlamaRMSNorm(1), scale_to_rms, -1),
        (LlamaRMSNorm(5), scale_to_rms, -1),
        (SqueezeBertLayerNorm(8), standardise, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("weight", [0.0, 1.0, -3.0])
def test_what_it_computes_is_found_whatever_its_weight(module, normalise, axis, weight):
    module = copy.deepcopy(module)
    nn.init.constant_(module.weight, weight)
    assert form_of(module) == (normalise, axis)


def test_a_norm_that_does_something_else_uses_its_gradient():
    assert form_of(OtherRMSNorm(8)) is None
    model = nn.Sequential(nn.Linear(8, 8), OtherRMSNorm(8))
    optimizer = AdaFisherW(model)
    model(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    assert torch.isfinite(optimizer.curvature(model[1].weight)).all()


class NestedRMSNorm(LlamaRMSNorm):
    def __init__(self, size):
        super().__init__(size)
        self.inner = nn.Identity()

    def forward(self, x):
        return super().forward(self.inner(x - x.mean(-1, keepdim=True)))


def test_modules_inside_a_norm_do_not_run():
    module = NestedRMSNorm(8)
    module.inner.register_forward_hook(lambda *_: pytest.fail("a module ran"))
    assert form_of(module) == form_by_name(module)


def test_where_it_cannot_be_tried_its_name_counts():
    assert form_of(FailsRMSNorm(8)) == form_by_name(FailsRMSNorm(8)) == (scale_to_rms, -1)


def test_trying_leaves_no_trace():
    module = DrawsRMSNorm(8)
    module.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    weight, state = module.weight, torch.get_rng_state()
    form_of(module)
    assert module.weight is weight and weight.grad is None and torch.equal(weight, torch.ones(8))
    assert float(module.seen) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_tried_once():
    model = nn.Sequential(nn.Linear(8, 8), CountedRMSNorm(8))
    optimizer = AdaFisherW(model)
    assert coverage(model)[-1].kind == "norm"
    assert CountedRMSNorm.calls == 0  # not before it is needed
    for expected in (3, 4):
        model(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
        assert CountedRMSNorm.calls == expected


@pytest.mark.parametrize("where", ["meta", "double", "half", "autocast", "wrapped"])
def test_wherever_the_module_is(where):
    module = CohereLayerNorm(8)
    if where == "meta":
        module = module.to("meta")
    elif where in ("double", "half"):
        module = getattr(module, where)()
    elif where == "wrapped":  # as accelerate does
        module.forward = lambda x: pytest.fail("the module's own forward ran")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where == "autocast"), torch.device("meta"):
        assert form_of(module) == (standardise, -1)


def test_where_values_are_unknown_its_name_counts_for_now():
    with FakeTensorMode():
        fake = CohereLayerNorm(8)
        assert form_of(fake) == form_by_name(fake) == (scale_to_rms, -1)
    assert form_of(fake) == (standardise, -1)


def test_a_sharded_norm_is_tried_like_any_other():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = fully_shard(CohereLayerNorm(8), mesh=init_device_mesh("cpu", (1,)))
        assert isinstance(module.weight, DTensor)
        assert form_of(module) == (standardise, -1)
        assert isinstance(module.weight, DTensor)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_and_no_epsilon(dtype):
    """nn.RMSNorm takes the epsilon of the input's type where it is given none."""
    module = nn.RMSNorm(8, dtype=dtype)
    x = torch.stack([torch.zeros(8), torch.full((8,), 0.01)]).to(dtype)
    normalised = RMSNormKind().inputs(module, (x,), module(x))
    torch.testing.assert_close(normalised[0].to(dtype), module(x))
    module.eps = 0.0
    assert not RMSNormKind().inputs(module, (x,), module(x)).isnan().any()


def test_a_compiled_norm_is_measured_as_it_computes():
    """Its form is tried in the backward pass, not while the graph is made."""
    curvatures = []
    for backend in (None, "aot_eager"):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), CohereLayerNorm(8))
        optimizer = AdaFisherW(model)
        network = torch.compile(model, backend=backend, fullgraph=True) if backend else model
        network(torch.randn(2, 3, 4)).pow(3).sum().backward()
        optimizer.step()
        curvatures.append(optimizer.curvature(model[1].weight))
    torch.testing.assert_close(*curvatures)
