"""The captured block of every kind of module equals the factors taken from per-token Jacobians, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from adafisher_hf import AdaFisherW
from tests.oracles.fisher import kronecker_factors

TAU = 0.1


class Host(nn.Module):
    """Calls one module, once or twice, with a mask that only the hooks look at."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.outputs: list[torch.Tensor] = []

    def forward(self, *inputs, attention_mask=None):
        self.outputs = [self.module(x) for x in inputs]
        for output in self.outputs:
            output.retain_grad()
        return sum(
            (output * 1.3).tanh().pow(2).mul(torch.linspace(0.2, 2, output.numel()).view_as(output)).sum()
            for output in self.outputs
        )


def floats(*shape):
    return lambda: torch.randn(*shape)


def ids(*shape):
    return lambda: torch.randint(0, 7, shape)


CASES = {
    "linear": (lambda: nn.Linear(4, 3), floats(2, 3, 4), -1, True),
    "linear-no-bias": (lambda: nn.Linear(4, 3, bias=False), floats(2, 3, 4), -1, True),
    "conv1d-of-gpt2": (lambda: Conv1D(3, 4), floats(2, 3, 4), -1, True),
    "embedding": (lambda: nn.Embedding(7, 4), ids(2, 3), -1, True),
    "embedding-padding-idx": (
        lambda: nn.Embedding(7, 4, padding_idx=2),
        lambda: torch.tensor([[1, 2, 5], [3, 6, 2]]),
        -1,
        False,
    ),
    "embedding-scaled": (
        lambda: Gemma3TextScaledWordEmbedding(7, 4, 0, embed_scale=2.5),
        lambda: torch.tensor([[1, 2, 5], [3, 6, 2]]),
        -1,
        True,
    ),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), floats(2, 4, 7), 1, False),
    "conv1d-depthwise": (lambda: nn.Conv1d(4, 4, 3, padding=2, groups=4), floats(2, 4, 5), 1, False),
    "conv2d": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2)),
        floats(2, 2, 5, 5),
        1,
        False,
    ),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 2, groups=2), floats(2, 4, 3, 3), 1, False),
    "conv2d-same-circular": (
        lambda: nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular"),
        floats(1, 2, 3, 3),
        1,
        False,
    ),
    "layernorm": (lambda: nn.LayerNorm(5), floats(2, 3, 5), -1, True),
    "llama-rmsnorm": (lambda: LlamaRMSNorm(5), floats(2, 3, 5), -1, True),
    "gemma-rmsnorm": (lambda: GemmaRMSNorm(5), floats(2, 3, 5), -1, True),
    "t5-layernorm": (lambda: T5LayerNorm(5), floats(2, 3, 5), -1, True),
    "torch-rmsnorm": (lambda: nn.RMSNorm(5), floats(2, 3, 5), -1, True),
    "batchnorm2d": (lambda: nn.BatchNorm2d(3), floats(2, 3, 2, 2), 1, False),
    "batchnorm2d-eval": (lambda: nn.BatchNorm2d(3).eval(), floats(2, 3, 2, 2), 1, False),
    "groupnorm": (lambda: nn.GroupNorm(2, 4), floats(2, 4, 5), 1, False),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def expected(parameter, host, deltas, keep, features):
    h, s, rows = kronecker_factors(parameter, host.outputs, deltas, keep, features)
    fisher = h * s / rows
    return fisher / fisher.mean() + TAU


def perturb(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize("calls", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize(
    ("case", "padded"),
    # An attention mask says nothing about the modules that are not maskable.
    [(case, padded) for case, (*_, maskable) in CASES.items() for padded in (False, True)[: 1 + maskable]],
)
def test_block_equals_per_token_oracle(case, padded, calls):
    make, draw, features, _ = CASES[case]
    torch.manual_seed(0)
    module = make()
    perturb(module)
    host, unhooked = Host(module), Host(copy.deepcopy(module))
    optimizer = AdaFisherW(host.parameters(), model=host, lr=1e-2, damping=TAU)
    inputs = [draw() for _ in range(calls)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]) if padded else None
    host(*inputs, attention_mask=mask).backward()
    optimizer.step()
    unhooked(*inputs, attention_mask=mask).backward(retain_graph=True)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None and not padded:
        keep = [(x != module.padding_idx).flatten() for x in inputs]
    else:
        tokens = host.outputs[0].movedim(features, -1).flatten(0, -2).shape[0]
        keep = [mask.flatten().bool() if padded else torch.ones(tokens, dtype=torch.bool) for _ in inputs]
    deltas = [output.grad.clone() for output in unhooked.outputs]
    for parameter, reference in zip(module.parameters(), unhooked.parameters(), strict=True):
        want = expected(reference, unhooked, deltas, keep, features)
        # transformers' RMSNorms compute in float32 whatever comes in
        tolerance = 1e-5 if "rmsnorm" in case or case == "t5-layernorm" else 1e-9
        torch.testing.assert_close(optimizer.curvature(parameter), want, rtol=tolerance, atol=tolerance)


class Tied(nn.Module):
    """A tied embedding and head, with something in between."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, ids, attention_mask=None):
        self.seen["embed"] = self.embed(ids)
        self.seen["hidden"] = self.mix(self.seen["embed"]).tanh()
        self.seen["logits"] = self.head(self.seen["hidden"])
        for tensor in self.seen.values():
            tensor.retain_grad()
        return self.seen["logits"].log_softmax(-1)[..., 3].sum()


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_tied_weight_adds_up_both_uses(padded):
    torch.manual_seed(0)
    model, tokens = Tied(), torch.randint(0, 7, (2, 3))
    optimizer = AdaFisherW(model.parameters(), model=model, damping=TAU)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]) if padded else torch.ones(2, 3, dtype=torch.long)
    model(tokens, attention_mask=mask).backward()
    keep = mask.flatten().double()
    frequency = torch.zeros(7).index_add_(0, tokens.flatten(), keep)
    of = {name: (tensor.detach().flatten(0, 1), tensor.grad.flatten(0, 1)) for name, tensor in model.seen.items()}
    s_embed, h_head, s_head = keep @ of["embed"][1] ** 2, keep @ of["hidden"][0] ** 2, keep @ of["logits"][1] ** 2
    fisher = (torch.outer(frequency, s_embed) + torch.outer(s_head, h_head)) / keep.sum()
    optimizer.step()
    torch.testing.assert_close(optimizer.curvature(model.embed.weight), fisher / fisher.mean() + TAU, rtol=1e-9, atol=0)


def test_positions_that_an_embedding_makes_itself_are_counted():
    """OPT's and BART's position embeddings take a mask or token ids, and look up something else."""
    from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding

    module = BartLearnedPositionalEmbedding(8, 4)
    host = Host(module)
    optimizer = AdaFisherW(host.parameters(), model=host, damping=TAU)
    host(torch.zeros(2, 3, dtype=torch.long)).backward()
    s = host.outputs[0].grad.flatten(0, -2).square().sum(0)
    frequency = torch.zeros(10)
    frequency[2:5] = 1
    fisher = torch.outer(frequency, s)
    optimizer.step()
    torch.testing.assert_close(optimizer.curvature(module.weight), fisher / fisher.mean() + TAU, rtol=1e-9, atol=0)
