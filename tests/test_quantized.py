"""LoRA on a frozen quantized base (QLoRA): only the adapters pay, with the statistics that real weights would give."""

from __future__ import annotations

import importlib.util

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig, Trainer, TrainingArguments

from adafisher_hf import AdaFisherW, coverage
from tests.models import llama
from tests.test_peft import hooked

IDS = torch.arange(64).view(4, 16)
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]


class Int8Linear(nn.Linear):
    """What quantized layers have in common: integers that no gradient reaches, multiplied out in the forward pass."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def dequantized(self) -> torch.Tensor:
        return self.weight * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.dequantized().to(x.dtype))


def simulated(folder):
    model = llama().requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            model.set_submodule(name, Int8Linear(layer))
    return model


def loaded(config):
    def load(folder):
        llama().save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config(), device_map="cpu")

    return load


def torchao_config():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"pip install {package}")


FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BASES = [
    pytest.param(simulated, id="simulated"),
    pytest.param(loaded(lambda: BitsAndBytesConfig(**FOUR_BIT)), marks=needs("bitsandbytes"), id="bitsandbytes 4 bit"),
    pytest.param(
        loaded(lambda: BitsAndBytesConfig(load_in_8bit=True)), marks=needs("bitsandbytes"), id="bitsandbytes 8 bit"
    ),
    pytest.param(loaded(torchao_config), marks=needs("torchao"), id="torchao"),
]


def with_adapters(model):
    torch.manual_seed(1)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.02)
    return model


def over_real_weights(model, quantized):
    """The same model with float weights where the other one has integers."""
    for name, layer in quantized.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head" and not layer.weight.requires_grad:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(dequantized(layer), requires_grad=False)
            model.set_submodule(name, plain)
    return model.requires_grad_(False)


def dequantized(layer):
    if isinstance(layer, Int8Linear):
        return layer.dequantized()
    if hasattr(layer.weight, "quant_state"):
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    if hasattr(layer.weight, "SCB"):
        return layer.weight.data * layer.weight.SCB[:, None] / 127
    return values(layer.weight)


def values(parameter):
    """A plain tensor; torchao's tensors cannot be compared."""
    plain = type(parameter) in (torch.Tensor, nn.Parameter) or not parameter.is_floating_point()
    return parameter.detach() if plain else parameter.dequantize()


def train(model, **knobs):
    model.train()
    optimizer = AdaFisherW(model, lr=1e-2, update_warmup=3, update_interval=2, **knobs)
    losses = []
    for i in range(8):
        optimizer.zero_grad()
        ids = IDS.roll(i)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return optimizer, losses


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("base", BASES)
def test_adapters_on_a_quantized_base(tmp_path, base, structure):
    model = base(tmp_path)
    other = with_adapters(over_real_weights(llama(), model))
    model = with_adapters(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: values(p).clone() for name, p in model.named_parameters() if name not in trainable}
    optimizer, losses = train(model, structure=structure)
    assert {row.name for row in coverage(model)} == trainable and all("lora_" in name for name in trainable)
    assert hooked(model) == {name.removesuffix(".weight") for name in trainable}
    assert {id(p) for p in optimizer.state} == {id(model.get_parameter(name)) for name in trainable}
    assert all(torch.equal(values(model.get_parameter(name)), value) for name, value in frozen.items())
    assert losses[-1] < losses[0]

    other_optimizer, _ = train(other, structure=structure)
    for name in trainable:
        p, q = model.get_parameter(name), other.get_parameter(name)
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        if structure == "diagonal":
            torch.testing.assert_close(optimizer.curvature(p), other_optimizer.curvature(q), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_the_whole_recipe_through_the_trainer(tmp_path, base):
    """Norms in float32, activation checkpointing, bf16: what QLoRA scripts set."""
    quantized = base(tmp_path / "base")
    model = with_adapters(peft.prepare_model_for_kbit_training(quantized))
    args = TrainingArguments(
        output_dir=str(tmp_path), optim="adafisherw", optim_args="update_interval=2,update_warmup=2", max_steps=10,
        learning_rate=1e-2, logging_steps=5, bf16=True, per_device_train_batch_size=8, save_strategy="no",
        use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS.repeat(20, 1)]
    trainer = Trainer(model, args, train_dataset=data)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[1] < losses[0]
    optimizer = trainer.optimizer.optimizer
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert optimizer.curvature(p).std() > 0.01, name
            assert all(value.dtype == torch.float32 for value in optimizer.state[p].values())
