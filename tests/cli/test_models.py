"""MODEL of coverage and doctor: checkpoints, classes of anybody, adapters; and one clear error for the rest."""

from __future__ import annotations

import json
import socket
import sys

import peft
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

import adafisher_hf
from adafisher_hf.cli import build_on_meta, main
from adafisher_hf.cli.errors import CommandError
from tests.models import Tiny, llama

CLASSES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.up, self.free = nn.Linear(2, width), nn.Parameter(torch.ones(2, 2))

class Sized(Net):
    def __init__(self, width):
        super().__init__(width)

def wide():
    return Net(width=50)

class Names:
    net = Net

SIZE = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the working directory."""
    (tmp_path / "mine.py").write_text(CLASSES)
    (tmp_path / "torn.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)


def covered(name, task="auto"):
    return adafisher_hf.coverage(build_on_meta(name, task))


def test_a_class_of_transformers_is_its_default_model():
    with torch.device("meta"):
        expected = adafisher_hf.coverage(GPT2LMHeadModel(GPT2Config()))
    assert covered("GPT2LMHeadModel") == covered("transformers:GPT2LMHeadModel") == expected


def test_a_config_is_its_model_type_with_a_task_if_wanted():
    assert covered("BertConfig") == covered("bert")
    assert covered("BertConfig", "token-classification") == covered("bert", "token-classification") != covered("bert")


def test_a_class_or_function_of_anybody():
    assert covered("tests.models:Tiny") == adafisher_hf.coverage(Tiny())
    assert isinstance(build_on_meta("tests.models:llama", "auto"), LlamaForCausalLM)


@pytest.mark.parametrize(("name", "width"), [("mine:Net", 3), ("mine:wide", 50), ("mine:Names.net", 3)])
def test_modules_of_the_working_directory_are_found(mine, name, width):
    shapes = {row.name: row.shape for row in covered(name)}
    assert shapes == {"free": (2, 2), "up.weight": (width, 2), "up.bias": (width,)}


def lora(model, **options):
    return peft.get_peft_model(model, peft.LoraConfig(r=4, **options))


def test_a_folder_with_adapters_is_the_base_model_with_them(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    adapted = lora(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"), target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    adapted.save_pretrained(tmp_path / "adapters")
    assert covered(str(tmp_path / "adapters")) == adafisher_hf.coverage(adapted)


def test_adapters_decide_on_the_task(tmp_path):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11)
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "base")
    classifier = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = lora(classifier, target_modules=["query"], task_type="SEQ_CLS")
    adapted.save_pretrained(tmp_path / "adapters")
    rows = covered(str(tmp_path / "adapters"))
    assert rows == adafisher_hf.coverage(adapted) and any("classifier" in row.name for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "does not say which model the adapters are for"),
        ({"base_model_name_or_path": "lama"}, "unknown model 'lama'"),
        ({"target_modules": ["q_prj"]}, "the adapters do not fit their base model 'llama'"),
        ({"peft_type": "MAGIC"}, "no usable adapter_config.json in"),
    ],
)
def test_adapters_that_cannot_be_used(tmp_path, change, message):
    config = {"peft_type": "LORA", "base_model_name_or_path": "llama", "target_modules": ["q_proj"], **change}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CommandError, match=message):
        build_on_meta(str(tmp_path), "auto")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LlamaForCasualLM", [], "did you mean 'LlamaForCausalLM'?"),
        ("AutoModel", [], "unknown model 'AutoModel'"),
        ("Trainer", [], "unknown model 'Trainer'"),
        ("PreTrainedModel", [], "cannot build 'PreTrainedModel': TypeError"),
        ("GPT2LMHeadModel", ["--task", "base"], "'GPT2LMHeadModel' is a model: leave it out"),
        ("mime:Net", [], "no module named 'mime', did you mean 'mine'?"),
        ("torch.n:Linear", [], "no module named 'torch.n', did you mean 'torch.nn'?"),
        ("mine.deeper:Net", [], "no module named 'mine.deeper'"),
        ("torn:Net", [], "cannot import 'torn': ModuleNotFoundError: No module named 'a_package_that_is_missing'"),
        ("mine:Nett", [], "'mine' has no 'Nett', did you mean 'Net'?"),
        ("mine:", [], "a class is named package.module:Class, got 'mine:'"),
        (":Net", [], "a class is named package.module:Class, got ':Net'"),
        (".mine:Net", [], "cannot import '.mine'"),
        ("mine:SIZE", [], "'mine:SIZE' is neither a class nor a function that makes a model"),
        ("mine:Names", [], "'mine:Names' makes a Names, not a model (torch.nn.Module)"),
        ("mine:Sized", [], "cannot build 'mine:Sized': TypeError: Sized.__init__() missing 1 required positional"),
    ],
)
def test_what_cannot_be_resolved_gets_one_line(mine, capsys, name, options, message):
    assert main(["coverage", name, *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("adafisher-hf: error: ") and message in captured.err


@pytest.mark.parametrize("name", ["AutoModel", "LlamaForCasualLM", "Bertmodel", "lama", "gpt2-medium"])
def test_what_is_suggested_can_be_had(name):
    with pytest.raises(CommandError, match="did you mean '(.+)'") as caught:
        build_on_meta(name, "auto")
    suggested = str(caught.value).rpartition("did you mean '")[2].partition("'")[0]
    assert build_on_meta(suggested, "auto").num_parameters() > 0


def test_of_an_output_folder_the_last_checkpoint_is_suggested(tmp_path, capsys):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert main(["coverage", str(tmp_path)]) == 1
    assert f"did you mean '{tmp_path / 'checkpoint-10'}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "status"),
    [("gpt2", 0), ("folder", 0), ("someone/cached", 0), ("someone/gpt2-small", 1), ("gpt2-medium", 1)],
)
def test_nothing_is_asked_of_a_network(tmp_path, monkeypatch, name, status):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for function in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, function, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--cached"
    for folder in (tmp_path / "folder", repo / "snapshots/abc"):
        GPT2Config(n_layer=1).save_pretrained(folder)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    monkeypatch.chdir(tmp_path)
    assert main(["coverage", name, "--summary"]) == status
    assert asked == []
