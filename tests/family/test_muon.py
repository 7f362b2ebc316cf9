"""Muon takes the steps of torch's, for the matrices that are hidden ones, and AdamW's for all else."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from torch import nn

from adafisher_hf import Muon, coverage
from tests.family.members import assert_close, convolutions, images
from tests.models import Routed, llama, next_token_loss, tiny, tiny_batches

if not hasattr(torch.optim, "Muon"):
    pytest.skip("torch is older than 2.9", allow_module_level=True)

SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
RULES = {
    "defaults": {},
    "others": {"momentum": 0.7, "nesterov": False, "ns_steps": 3, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.0},
}


def theirs(params, lr=1e-2, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.1, **_):
    knobs = dict(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, weight_decay=weight_decay)
    return torch.optim.Muon(params, lr=lr, adjust_lr_fn="match_rms_adamw", **knobs)


def by_hand(model, hidden, lr=1e-2, beta1=0.9, beta2=0.999, weight_decay=0.1, **knobs):
    """The two optimizers that a user would make."""
    matrices = [p for name, p in model.named_parameters() if hidden(name)]
    rest = [p for name, p in model.named_parameters() if not hidden(name)]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)
    return theirs(matrices, lr, weight_decay=weight_decay, **knobs), adam


def side_by_side(a, b, hidden, losses, **knobs):
    ours, both = Muon(a, lr=1e-2, **knobs), by_hand(b, hidden, **knobs)
    for loss in losses:
        for model, optimizers in ((a, [ours]), (b, both)):
            model.zero_grad()
            loss(model).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("knobs", RULES.values(), ids=RULES)
def test_a_transformer_as_torch_trains_it(knobs):
    losses = [lambda model, ids=ids: model(input_ids=ids, labels=ids).loss for ids in tiny_batches(20)]
    side_by_side(llama().double(), llama().double(), lambda name: "proj" in name, losses, **knobs)


def test_what_nobody_knows_gets_adamw():
    losses = [lambda model, ids=ids: next_token_loss(model, ids) for ids in tiny_batches(20)]
    side_by_side(tiny(), tiny(), lambda name: name in ("up.weight", "down.weight"), losses)


def test_a_convolution_is_one_matrix():
    ours, flat = convolutions(), convolutions()
    matrix = nn.Parameter(flat.conv.weight.detach().flatten(1))
    optimizers = Muon(ours, lr=1e-2), theirs([matrix])
    for x, y in images(20):
        ours.zero_grad()
        nn.functional.cross_entropy(ours(x), y).backward()
        matrix.grad = ours.conv.weight.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours.conv.weight.flatten(1), matrix, rtol=0, atol=1e-13)


def fused(model, name):
    return model, model.get_parameter(name)


def one_step(model, parameter, grad):
    """What a step adds to a parameter, without decay."""
    before = parameter.detach().clone()
    parameter.grad = grad
    Muon(model, lr=1e-2, weight_decay=0.0).step()
    return parameter.detach() - before


def alone(grad):
    matrix = nn.Parameter(torch.zeros_like(grad))
    matrix.grad = grad
    theirs([matrix], weight_decay=0.0).step()
    return matrix.detach()


def test_the_parts_of_gpt2_s_c_attn():
    model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)).double()
    weight, grad = model.transformer.h[0].attn.c_attn.weight, torch.randn(16, 48).double()
    expected = torch.cat([alone(part) for part in grad.chunk(3, dim=1)], dim=1)
    torch.testing.assert_close(one_step(model, weight, grad), expected, rtol=0, atol=1e-12)
    assert (alone(grad) - expected).abs().max() > 1e-3


def test_the_parts_of_bloom_lie_by_head():
    """A query, a key and a value of each head: no part is a view."""
    model = t.BloomForCausalLM(t.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=32)).double()
    weight = model.transformer.h[0].self_attention.query_key_value.weight
    grad = torch.randn(48, 16).double()
    expected = torch.empty(2, 3, 8, 16).double()
    for part in range(3):
        expected[:, part] = alone(grad.view(2, 3, 8, 16)[:, part].reshape(16, 16)).view(2, 8, 16)
    torch.testing.assert_close(one_step(model, weight, grad), expected.view(48, 16), rtol=0, atol=1e-12)
    Muon(model).step()  # and the momentum goes back into its place
    optimizer = Muon(model, momentum=0.5)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], grad / 2, rtol=0, atol=1e-12)


def test_each_expert_is_a_matrix():
    model = Routed().double()
    weight = model.experts.down_proj
    grad = torch.randn_like(weight)
    expected = torch.stack([alone(expert) for expert in grad])
    torch.testing.assert_close(one_step(model, weight, grad), expected, rtol=0, atol=1e-12)


MODELS = {
    "llama": llama,
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=32)
    ),
    "vit": lambda: t.ViTForImageClassification(
        t.ViTConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ),
    "mixtral": lambda: t.MixtralForCausalLM(
        t.MixtralConfig(**SMALL, intermediate_size=24, num_key_value_heads=1, num_local_experts=3)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_hidden_matrices_are_those_of_our_own_structure(name):
    model = MODELS[name]()
    optimizer = Muon(model)
    optimizer.init_state()
    roles = {row.name: row.role for row in coverage(model)}
    for parameter_name, param in model.named_parameters():
        assert ("momentum_buffer" in optimizer.state[param]) == (roles[parameter_name] == "hidden"), parameter_name
    assert {"hidden", "vocabulary", "vector"} <= set(roles.values())


def test_the_vocabulary_has_a_rate_of_its_own():
    def moved(**knobs):
        model, start = llama().double(), llama().double()
        optimizer = Muon(model, lr=1e-3, weight_decay=0.1, **knobs)
        model(input_ids=tiny_batches(1)[0], labels=tiny_batches(1)[0]).loss.backward()
        optimizer.step()
        return {n: p.detach() - q for (n, p), q in zip(model.named_parameters(), start.parameters(), strict=True)}

    plain, faster = moved(), moved(vocabulary_lr=4.0)
    for name in plain:
        factor = 4 if "embed" in name else 1
        torch.testing.assert_close(faster[name], factor * plain[name], rtol=1e-9, atol=1e-12)


def test_the_model_has_to_be_known(monkeypatch):
    with pytest.raises(ValueError, match="Muon needs the model, to know hidden matrices: pass model=model"):
        Muon(llama().parameters())
    with pytest.raises(ValueError, match=r"a parameter of shape \(64, 32\) is not one of the model's"):
        Muon(llama().parameters(), model=llama())
    with pytest.raises(TypeError, match="model must be the torch module"):
        Muon(llama().parameters(), model="llama")
    model = tiny()
    optimizer = Muon(model.parameters(), model=model)
    with pytest.raises(ValueError, match="is not one of the model's"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1
    monkeypatch.setattr("adafisher_hf.family.muon.functional_muon", None)
    with pytest.raises(ImportError, match=r'Muon needs torch 2.9 or later: pip install "adafisher-hf\[family\]"'):
        Muon(llama())


def test_parameters_that_were_exchanged():
    """FSDP2 puts others in their places, as many and in the same order."""
    model = llama()
    optimizer = Muon(model)
    group = optimizer.param_groups[0]
    hidden = [layout.role for layout in optimizer._bound_layouts().values()]
    group["params"] = [nn.Parameter(param.detach().clone()) for param in group["params"]]
    for param in group["params"]:
        param.grad = torch.ones_like(param)
    optimizer.step()
    found = ["momentum_buffer" in optimizer.state[param] for param in group["params"]]
    assert found == [role == "hidden" for role in hidden]
    group["params"] = [nn.Parameter(torch.ones(7))]
    with pytest.raises(ValueError, match="exchanged for 1 others.*DeepSpeed ZeRO flattens"):
        optimizer.init_state()
