"""Adapters: only what is trained pays, what is switched off rests, and the first step is already sensible."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW, coverage
from adafisher_hf.statistics.tap import Tap
from tests.architectures import build
from tests.models import llama

IDS = torch.arange(2, 34).view(4, 8)
ATTENTION = ["q_proj", "v_proj"]


def lora(model=None, **config):
    torch.manual_seed(1)
    config = {"r": 4, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **config}
    return peft.get_peft_model(model or llama(), peft.LoraConfig(**config))


CASES = {
    "lora": (lora, set()),
    "rslora": (lambda: lora(use_rslora=True), set()),
    "dora": (lambda: lora(use_dora=True), {"lora_magnitude_vector"}),
    "embedding": (lambda: lora(target_modules=["embed_tokens", "q_proj"]), {"lora_embedding"}),
    "conv1d": (lambda: lora(build("gpt2")[0], target_modules=["c_attn"], fan_in_fan_out=True), set()),
    "modules_to_save": (lambda: lora(modules_to_save=["norm", "lm_head"]), set()),
    "experts": (
        lambda: lora(
            build("mixtral")[0], target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]
        ),
        {r"experts"},
    ),
    "ia3": (
        lambda: peft.get_peft_model(
            llama(), peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        ),
        {"ia3_l"},
    ),
    "prompt": (
        lambda: peft.get_peft_model(
            llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ),
        set(),
    ),
}  # fmt: skip


def loss_of(model):
    return model(input_ids=IDS % 32, labels=IDS % 32).loss


def hooked(model):
    """The modules that are measured; that models are watched for their masks costs no module anything."""
    modules = model.named_modules()
    return {name for name, module in modules if any(map(is_tap, module._forward_hooks.values()))}


def is_tap(hook):
    return isinstance(getattr(hook, "__self__", None), Tap)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "orthogonal"])
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_trains_and_only_it_pays(case, structure):
    make, fallbacks = CASES[case]
    model = make()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = AdaFisherW(model, lr=1e-2, structure=structure)
    assert {row.name for row in coverage(model)} == set(trainable)
    unseen = [row.name for row in coverage(model) if row.kind == "gradient"]
    assert all(any(word in name for word in fallbacks) for name in unseen), unseen
    owners = {owner for row in coverage(model) for owner in row.owners}  # not the frozen base
    assert hooked(model) <= owners
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert all(torch.isfinite(p).all() for p in trainable.values())
    assert losses[-1] < losses[0] - 5e-4
    assert losses[1] < losses[0] + 0.05
    assert set(map(id, optimizer.state)) == set(map(id, trainable.values()))
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())


def test_captured_are_the_adapters_own_inputs_and_outputs():
    """A's h is the layer's input, B's is A's output."""
    model = lora().double()
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    nn.init.normal_(layer.lora_B["default"].weight)
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0].detach().flatten(0, 1)))
    optimizer = AdaFisherW(model, lr=1e-2)
    loss_of(model).backward()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = {a: seen["x"], b: seen["x"] @ a.detach().T}
    optimizer.step()
    for weight, h in expected.items():
        captured, want = optimizer.state[weight]["col_factor_0"][0], h.square().sum(0)
        torch.testing.assert_close(captured / captured.mean(), want / want.mean(), rtol=1e-9, atol=0.0)


def test_the_first_steps_of_a_and_b_are_of_adamws_size():
    """B is zero at first, so A has no gradient: A rests at step one, B moves as far as under AdamW, and then both."""
    moved = {}
    for name in ("ours", "adamw"):
        model = lora()
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = (
            AdaFisherW(params, model=model, lr=1e-3)
            if name == "ours"
            else torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95))
        )
        for _ in range(2):
            before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            for n, old in before.items():
                side = "A" if "lora_A" in n else "B"
                moved.setdefault((name, side), []).append((model.get_parameter(n) - old).norm().item())
    half = len(moved["ours", "A"]) // 2
    assert max(moved["ours", "A"][:half]) == 0.0
    for side, part in (("B", slice(0, half)), ("B", slice(half, None)), ("A", slice(half, None))):
        for ours, theirs in zip(moved["ours", side][part], moved["adamw", side][part], strict=True):
            assert 0.3 < ours / theirs < 3.0


def test_a_switched_off_adapter_rests():
    model = lora()
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules=ATTENTION, task_type="CAUSAL_LM"))
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    optimizer = AdaFisherW(model, lr=1e-2, weight_decay=0.1)
    for active, resting in (("default", "second"), ("second", "default")):
        model.set_adapter(active)
        for name, p in model.named_parameters():
            p.requires_grad_("lora_" in name)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if f".{resting}." in n}
        for _ in range(3):
            model.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        assert all(torch.equal(model.get_parameter(n), value) for n, value in before.items())
        assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if f".{active}." in n)


def test_adalora_trains_through_its_changing_ranks():
    config = peft.AdaLoraConfig(
        init_r=6, target_r=2, total_step=12, tinit=2, tfinal=4, deltaT=1, target_modules=ATTENTION,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(1)
    model = peft.get_peft_model(llama(), config)
    optimizer = AdaFisherW(model, lr=1e-2)
    losses = []
    for i in range(12):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(i)
        model.zero_grad()
        losses.append(loss.item())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[-1] < losses[0]


def test_frozen_base_in_half_precision():
    model = lora(llama().to(torch.bfloat16))
    optimizer = AdaFisherW(model, lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(v.dtype == torch.float32 for state in optimizer.state.values() for v in state.values())
