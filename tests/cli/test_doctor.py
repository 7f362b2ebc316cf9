"""doctor: what it says is fine trains, what it refuses does not, and it never ends in a traceback."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from torch import nn
from transformers import LlamaForCausalLM

import adafisher_hf
from adafisher_hf.cli import checks, main
from adafisher_hf.integrations.entries import OPTIMIZERS
from adafisher_hf.update import KERNELS, foreach
from tests.models import llama

TEMPLATE = Path(__file__).parents[2] / ".github/ISSUE_TEMPLATE/bug_report.yml"
MARK = "PROBLEM: "


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 4, sparse=True)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class Frozen(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.requires_grad_(False)


def doctor(capsys, *argv):
    """The exit status, and what is said by what it is about."""
    status = main(["doctor", *map(str, argv)])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return status, {what: "".join(seen) for what, *seen in lines}


def problems(said):
    return {what for what, seen in said.items() if seen.startswith(MARK)}


def test_where_the_tests_run_all_is_well(capsys):
    status, said = doctor(capsys)
    assert status == 0 and problems(said) == set()
    assert said["adafisher-hf"] == adafisher_hf.__version__
    for package in ("torch", "transformers", "accelerate"):
        assert said[package] == importlib.metadata.version(package)
    assert all(name in said["registration"] for name in OPTIMIZERS)
    assert said["kernel"] == "auto takes foreach" and "fine" in said["cpu"]


def test_a_package_that_is_too_old_or_missing(capsys, monkeypatch):
    needed = {
        "torch": Requirement("torch>=99"),
        "peft": Requirement("nowhere; extra == 'peft'"),
        "accelerate": Requirement("accelerate>=1.0"),
    }
    monkeypatch.setattr(checks, "_needed", lambda: needed)
    monkeypatch.setattr(checks, "PACKAGES", ("torch", "accelerate", "nowhere-at-all"))
    status, said = doctor(capsys)
    assert status == 1 and problems(said) == {"torch"} and said["torch"].endswith("needed is >=99")
    assert said["nowhere-at-all"] == "not installed"
    needed["nowhere-at-all"] = Requirement("nowhere-at-all>=1")
    assert problems(doctor(capsys)[1]) == {"torch", "nowhere-at-all"}


def test_what_the_package_asks_for_is_read(monkeypatch):
    needed = checks._needed()
    assert "2.5" not in needed["torch"].specifier and needed["torch"].marker is None
    assert needed["peft"].marker is not None
    lines = ["torch>=2.6", 'torch>=2.9; extra == "test"', 'peft>=0.18; extra == "peft"']
    for order in (lines, lines[::-1]):  # both are seen: it is the installer that puts extras in their place
        monkeypatch.setattr(importlib.metadata, "requires", lambda _, order=order: order)
        asked = {name: str(one.specifier) for name, one in checks._needed().items()}
        assert asked == {"torch": ">=2.6", "peft": ">=0.18"}


def test_a_broken_registration(capsys):
    adafisher_hf.unregister()
    try:
        status, said = doctor(capsys, "gpt2")
    finally:
        adafisher_hf.register()
    assert status == 1 and problems(said) == {"registration"}
    assert "adafisher is not a valid OptimizerNames" in said["registration"]
    assert "model" not in said  # nothing can be said of it


class Broken:
    """A kernel that spoils the weights."""

    __name__ = "package.broken"
    advance, ahead = staticmethod(foreach.advance), staticmethod(foreach.ahead)

    @staticmethod
    def apply(batch, *args):
        for param in batch.params:
            param.fill_(torch.nan)


@pytest.mark.parametrize(
    ("kernel", "name", "message"), [("plain", "plain", ""), (Broken(), "broken", "not finite"), (None, "", "")]
)
def test_the_kernel_is_named_and_tried(capsys, monkeypatch, kernel, name, message):
    monkeypatch.setitem(KERNELS, "auto", kernel)
    status, said = doctor(capsys)
    assert name in said["kernel"] and message in said["cpu"]
    assert status == int(kernel != "plain") and ("cpu" in problems(said)) == (kernel != "plain")


def test_a_model_that_trains(tmp_path, capsys):
    model = llama()
    model.save_pretrained(tmp_path)
    optim_args = "structure=kronecker,max_factor_dim=16"
    status, said = doctor(capsys, tmp_path, "--optim_args", optim_args)
    assert status == 0 and problems(said) == set()
    assert said["model"].startswith(f"LlamaForCausalLM, {model.num_parameters():,} numbers")
    assert said["weights"] == "float32" and "linear" in said["curvature"]
    optimizer = adafisher_hf.AdaFisherW(model, structure="kronecker", max_factor_dim=16)
    optimizer.init_state()
    total = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert f"{total:,} bytes" in said["optim=adafisherw"]


@pytest.mark.parametrize("optim", list(OPTIMIZERS))
def test_every_optimizer_says_something(tmp_path, capsys, optim):
    llama().save_pretrained(tmp_path)
    status, said = doctor(capsys, tmp_path, "--optim", optim)
    assert status == 0 and "takes this model" in said[f"optim={optim}"]


@pytest.mark.parametrize("cls", [Sparse, Complex, Frozen])
def test_what_it_refuses_is_refused_in_training(capsys, cls):
    with pytest.raises(ValueError) as refused:
        adafisher_hf.AdaFisherW(cls()).init_state()
    status, said = doctor(capsys, f"{__name__}:{cls.__name__}")
    assert status == 1 and "optim=adafisherw" in problems(said)
    assert str(refused.value) in said["optim=adafisherw"]


@pytest.mark.parametrize(
    ("optim_args", "message"),
    [("gama=1", "did you mean 'gamma'"), ("mode=paper,structure=kronecker", "needs mode='calibrated'")],
)
def test_wrong_options(capsys, optim_args, message):
    status, said = doctor(capsys, "tests.models:Tiny", "--optim_args", optim_args)
    assert status == 1 and problems(said) == {"optim=adafisherw"} and message in said["optim=adafisherw"]


def test_uncovered_parameters_are_named_and_no_problem(capsys):
    status, said = doctor(capsys, "tests.models:Tiny")
    assert status == 0 and said["curvature"].endswith("by gradient alone: gate")


def test_an_unknown_model_is_a_problem_too(capsys):
    status, said = doctor(capsys, "lama")
    assert status == 1 and problems(said) == {"model"} and "did you mean 'llama'?" in said["model"]


def quantized(folder, method):
    """A checkpoint whose weights say that they are quantized."""
    llama().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": method}))


def adapted(folder, base):
    import peft

    model = peft.get_peft_model(LlamaForCausalLM(llama().config), peft.LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)


QUANTO, MXFP4 = {"quant_method": "quanto", "weights": "int8"}, {"quant_method": "mxfp4"}


@pytest.mark.parametrize(
    ("method", "alone", "with_adapters"),
    [
        (QUANTO, "quantized with quanto: such weights are not trained", "quantized with quanto"),
        (MXFP4, "quantized with mxfp4: such weights are not trained", f"{MARK}ValueError: quantized with mxfp4, which"),
        ({"quant_method": "magic"}, "Unknown quantization type, got magic", f"{MARK}ValueError: Unknown quantization"),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else "",
)
def test_quantized_weights(tmp_path, capsys, method, alone, with_adapters):
    quantized(tmp_path / "base", method)
    adapted(tmp_path / "adapters", tmp_path / "base")
    status, said = doctor(capsys, tmp_path / "base")
    assert status == 1 and problems(said) == {"weights"} and alone in said["weights"]
    status, said = doctor(capsys, tmp_path / "adapters")
    assert said["weights"].startswith(with_adapters) and status == int(with_adapters.startswith(MARK))


def test_the_bug_report_asks_for_it():
    form = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    (field,) = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "adafisher-hf doctor" in field["attributes"]["description"]
    assert field["attributes"]["render"] == "text" and field["validations"]["required"]
