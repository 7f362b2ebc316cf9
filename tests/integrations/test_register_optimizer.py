"""Any torch optimizer under a name of its own: one line, and everything that speaks to an entry speaks to it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import GPT2Config, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

import adafisher_hf
from adafisher_hf import AdaFisherTrainer, CurvatureCallback, register_optimizer, unregister_optimizer
from adafisher_hf.cli import main
from adafisher_hf.config import Interval, OptimizerConfig, knob
from adafisher_hf.insight.memory import state_bytes
from adafisher_hf.integrations.entries import OPTIMIZERS
from adafisher_hf.integrations.optimizers import CITATION
from tests.integrations.snapshots import snapshot
from tests.integrations.test_trainer import arguments, assert_same, data, weights
from tests.models import llama

NAME = "signed"
FILE = "signed_config.json"
PAPER = "https://example.org/signed"
BIBTEX = "@misc{signed,\n  title = {Signs},\n}\n"


@dataclass(frozen=True, kw_only=True)
class SignedConfig(OptimizerConfig):
    file_name: ClassVar[str] = FILE
    title: ClassVar[str] = "Signed config"

    beta: float = knob(0.9, Interval(0, 1), "decay of the momentum")
    nesterov: bool = knob(False, (True, False), "look ahead")


class Signed(torch.optim.Optimizer):
    """Steps of the sign of the momentum, with weight decay."""

    def __init__(self, params, lr=1e-3, *, beta, nesterov, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, beta=beta, nesterov=nesterov, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                average = self.state[param].setdefault("average", torch.zeros_like(param))
                average.lerp_(param.grad, 1 - group["beta"])
                ahead = average.lerp(param.grad, 1 - group["beta"]) if group["nesterov"] else average
                param.mul_(1 - group["lr"] * group["weight_decay"]).add_(ahead.sign(), alpha=-group["lr"])


class SignedOfModel(Signed):
    """The same, told which model it trains."""

    def __init__(self, params, lr=1e-3, *, network, **knobs):
        super().__init__(params, lr, **knobs)
        self.network = network


KINDS = {"of parameters": (Signed, {}), "of a model": (SignedOfModel, {"needs_model": True})}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def registered(request):
    """Registers one of the two, and proves that nothing of it is left."""
    before, names = snapshot(), list(OPTIMIZERS)
    cls, options = request.param
    register_optimizer(NAME, cls, SignedConfig, **options)
    yield cls
    unregister_optimizer(NAME)
    assert snapshot() == before
    assert list(OPTIMIZERS) == names


@pytest.fixture
def signed():
    """One of them is enough."""
    register_optimizer(NAME, Signed, SignedConfig, citation=BIBTEX, paper=PAPER, from_trainer={"beta": "adam_beta1"})
    yield
    if NAME in OPTIMIZERS:
        unregister_optimizer(NAME)


def settings(folder, **changes):
    defaults = {"optim": NAME, "optim_args": "beta=0.5, nesterov = true", "weight_decay": 0.1}
    return arguments(folder, **{**defaults, **changes})


def trained(folder, cls=Trainer, callbacks=None, resume=None, **changes):
    trainer = cls(llama(), settings(folder, **changes), train_dataset=data(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("cls", [Trainer, AdaFisherTrainer])
def test_it_trains(registered, tmp_path, cls):
    trainer = trained(tmp_path, cls, max_steps=20, learning_rate=3e-3)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is registered
    assert (optimizer.defaults["beta"], optimizer.defaults["nesterov"]) == (0.5, True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert getattr(optimizer, "network", trainer.model) is trainer.model
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] - 0.3
    assert not any(key.startswith("curvature/") for log in trainer.state.log_history for key in log)


@pytest.mark.parametrize("cls", [Trainer, AdaFisherTrainer])
def test_it_resumes_to_the_same_bits(registered, tmp_path, cls):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "seed": 3}
    whole = trained(tmp_path / "whole", cls, **saving)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", cls, [Interrupt], **saving)
    resumed = trained(tmp_path / "cut", cls, resume=True, **saving)
    assert resumed.state.global_step == 8
    assert_same(weights(whole.model), weights(resumed.model))


def test_a_checkpoint_that_was_cut_short_is_none(signed, tmp_path):
    trained(tmp_path, save_strategy="steps", save_steps=2)
    (tmp_path / "checkpoint-4/trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="checkpoint-4 was cut short while it was saved"):
        trained(tmp_path, resume=str(tmp_path / "checkpoint-4"), max_steps=6)


def test_its_config_is_written(registered, tmp_path):
    trainer = trained(tmp_path, AdaFisherTrainer, save_strategy="steps", save_steps=2)
    trainer.save_model(tmp_path / "final")
    for folder in (tmp_path, tmp_path / "checkpoint-2", tmp_path / "final"):
        assert SignedConfig.from_pretrained(folder) == SignedConfig(beta=0.5, nesterov=True)
        assert json.loads((folder / FILE).read_text()) == {"version": 1, "beta": 0.5, "nesterov": True}
    again = trained(tmp_path / "again", optim_args=f"config={tmp_path},beta=0.25").optimizer.optimizer
    assert (again.defaults["beta"], again.defaults["nesterov"]) == (0.25, True)


def test_a_callback_writes_its_config_and_says_that_there_is_no_curvature(registered, tmp_path, caplog):
    trained(tmp_path, callbacks=[CurvatureCallback])
    assert SignedConfig.from_pretrained(tmp_path) == SignedConfig(beta=0.5, nesterov=True)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("adafisher_hf")]
    name = registered.__name__
    assert warning == f"CurvatureCallback writes the config and no curvature: {name} has no summary_rows()"
    assert not (tmp_path / "curvature.jsonl").exists()


def card_of(folder):
    trainer = trained(folder, AdaFisherTrainer)
    trainer.create_model_card()
    return (folder / "README.md").read_text()


def test_its_card_has_what_the_entry_has(signed, tmp_path):
    card = card_of(tmp_path)
    assert "- signed\n" in card.split("---")[1]
    assert "- adafisher\n" not in card
    assert "- optimizer: Use signed and the args are:\nbeta=0.5,nesterov=True" in card
    version = adafisher_hf.__version__
    assert f"This model was trained with Signed ([paper]({PAPER})) registered with adafisher_hf {version} and" in card
    assert "learning_rate=0.01, weight_decay=0.1, beta=0.5, nesterov=True. To train the same way" in card
    assert '# "signed" is tests.integrations.test_register_optimizer.Signed: register it first' in card
    assert f"### Citation\n\n```bibtex\n{BIBTEX}```\n<!-- end of adafisher_hf -->\n" in card
    assert card_of(tmp_path) == card
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert (names["args"].optim, names["args"].optim_args) == (NAME, "beta=0.5,nesterov=True")


def test_its_card_has_no_paper_and_no_citation_if_there_is_none(registered, tmp_path):
    card = card_of(tmp_path)
    assert f"This model was trained with {registered.__name__} registered with adafisher_hf" in card
    assert not any(word in card for word in ("bibtex", "[paper]", "### Citation"))
    assert CITATION not in card


def test_what_nobody_knows_the_options_of_has_the_trainers_own_card(signed, tmp_path):
    """It was handed over, so that the arguments say nothing of it."""
    model = llama()
    args = settings(tmp_path, optim="adamw_torch", optim_args=None)
    optimizer = Signed(model.parameters(), beta=0.5, nesterov=False)
    trainer = AdaFisherTrainer(model, args, train_dataset=data(), optimizers=(optimizer, None))
    trainer.train()
    trainer.create_model_card()
    assert "signed" not in (tmp_path / "README.md").read_text().lower()
    assert not (tmp_path / FILE).exists()


def test_the_command_line_and_the_parser_list_it(registered, capsys):
    def help_text():
        with pytest.raises(SystemExit):
            main(["--help"])
        return capsys.readouterr().out

    def choices():
        actions = HfArgumentParser(TrainingArguments)._actions
        return next(action.choices for action in actions if action.dest == "optim")

    text = help_text()
    assert "for optim=signed:\n  beta = 0.9  (a number in [0, 1))\n      decay of the momentum\n" in text
    assert "  nesterov = False  (one of True, False)\n      look ahead" in text
    assert text.count("for optim=") == 7 and "for optim=adafisher and optim=adafisherw:\n" in text
    assert NAME in choices()
    unregister_optimizer(NAME)
    assert NAME not in help_text() and NAME not in choices()
    register_optimizer(NAME, registered, SignedConfig, needs_model=registered is SignedOfModel)


@pytest.mark.parametrize(
    ("optim_args", "message"),
    [
        (
            "betta=0.5",
            "unknown optim_args key 'betta', did you mean 'beta'\\? \\(valid keys: beta, nesterov, config\\)",
        ),
        ("beta=1", "beta must be a number in \\[0, 1\\), got '1'"),
        ("nesterov=maybe", "nesterov must be one of True, False, got 'maybe'"),
        ("lr=1", "optim_args cannot set 'lr': use TrainingArguments.learning_rate"),
        (
            "config=nowhere",
            "no Signed config at 'nowhere/signed_config.json': give a folder that holds a signed_config",
        ),
    ],
)
def test_wrong_options_fail_with_the_training_arguments(signed, tmp_path, optim_args, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        settings(tmp_path, optim_args=optim_args)


def test_the_trainers_arguments_set_knobs_that_optim_args_leave(signed, tmp_path):
    def beta(**changes):
        return Trainer(llama(), settings(tmp_path, **changes)).create_optimizer().defaults["beta"]

    assert beta(adam_beta1=0.75, optim_args=None) == 0.75
    assert beta(adam_beta1=0.75, optim_args="beta=0.25") == 0.25


def test_memory_has_a_row_of_it(registered, tmp_path, capsys):
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    config.save_pretrained(tmp_path)
    assert main(["coverage", str(tmp_path), "--memory", "--json"]) == 0
    rows = {row["setting"]: row for row in json.loads(capsys.readouterr().out)["memory"]}
    assert list(rows)[-1] == NAME and "adafisher" not in rows
    assert rows[NAME]["bytes"] * 2 == rows["AdamW"]["bytes"]
    assert rows[NAME]["per_parameter"] == 4.0


class AsksForValues(Signed):
    def step(self, closure=None):
        self.param_groups[0]["params"][0].grad.norm().item()


def test_memory_says_if_it_cannot_know(tmp_path, capsys):
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    config.save_pretrained(tmp_path)
    register_optimizer(NAME, AsksForValues, SignedConfig)
    try:
        assert main(["coverage", str(tmp_path), "--memory"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].split() == [NAME, "not", "known"]
        assert main(["coverage", str(tmp_path), "--memory", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["memory"][-1] == {
            "setting": NAME,
            "bytes": None,
            "per_parameter": None,
        }
    finally:
        unregister_optimizer(NAME)


def test_memory_changes_no_model():
    with pytest.raises(ValueError, match="Signed makes its state in a step: put the model on the meta device"):
        state_bytes(Signed, llama(), beta=0.9, nesterov=False)


def test_a_class_is_imported_when_it_is_used(tmp_path):
    (tmp_path / "late.py").write_text("from tests.integrations.test_register_optimizer import Signed as Late\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import adafisher_hf
from adafisher_hf.config import Interval, OptimizerConfig, knob
from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    beta: float = knob(0.9, Interval(0, 1), "decay")
    nesterov: bool = knob(False, (True, False), "look ahead")
adafisher_hf.register_optimizer("late", "late:Late", Config)
assert not {{"late", "torch", "transformers"}} & set(sys.modules)
from transformers import Trainer, TrainingArguments
args = TrainingArguments("out", optim="late", optim_args="beta=0.5", use_cpu=True)
assert "late" not in sys.modules
cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
assert cls is sys.modules["late"].Late and kwargs == dict(lr=5e-5, beta=0.5, nesterov=False)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_registering_survives_unregister_and_register(signed, tmp_path):
    adafisher_hf.unregister()
    try:
        with pytest.raises(ValueError, match="signed is not a valid OptimizerNames"):
            settings(tmp_path)
    finally:
        adafisher_hf.register()
    assert settings(tmp_path).optim == NAME


def test_the_same_again_changes_nothing(signed):
    before = snapshot()
    register_optimizer(NAME, Signed, SignedConfig, citation=BIBTEX, paper=PAPER, from_trainer={"beta": "adam_beta1"})
    assert snapshot() == before


def test_an_optimizer_can_refuse_and_needs_its_model(tmp_path):
    def refuses(args, model, config):
        if config.nesterov and args.gradient_accumulation_steps > 1:
            raise ValueError("nesterov wants every step")

    register_optimizer(NAME, SignedOfModel, SignedConfig, needs_model=True, refuses=refuses)
    try:
        with pytest.raises(ValueError, match="nesterov wants every step"):
            Trainer(llama(), settings(tmp_path, gradient_accumulation_steps=2)).create_optimizer()
        with pytest.raises(ValueError, match='optim="signed" needs the model: pass model=… to the Trainer'):
            Trainer.get_optimizer_cls_and_kwargs(settings(tmp_path))
    finally:
        unregister_optimizer(NAME)


class Undecorated(SignedConfig):
    pass


@dataclass(frozen=True, kw_only=True)
class WithPlainField(OptimizerConfig):
    beta: float = 0.9


@dataclass(frozen=True, kw_only=True)
class WithRate(OptimizerConfig):
    lr: float = knob(0.9, Interval(0), "no")


@pytest.mark.parametrize(
    ("name", "cls", "config", "error", "message"),
    [
        (
            "my optimizer",
            Signed,
            SignedConfig,
            ValueError,
            "letters, digits and underscores, got 'my optimizer'",
        ),
        ("2nd", Signed, SignedConfig, ValueError, "must be letters, digits and underscores, got '2nd'"),
        (None, Signed, SignedConfig, ValueError, "must be letters, digits and underscores, got None"),
        ("adamw_torch", Signed, SignedConfig, ValueError, "the name of another optimizer that transformers knows"),
        ("SGD", Signed, SignedConfig, ValueError, "the name of another optimizer that transformers knows"),
        (
            "adafisherw",
            Signed,
            SignedConfig,
            ValueError,
            "registered already: call unregister_optimizer\\('adafisherw'\\)",
        ),
        ("x", torch.nn.Linear, SignedConfig, TypeError, "must be a subclass of torch.optim.Optimizer, got <class"),
        (
            "x",
            lambda params: None,
            SignedConfig,
            TypeError,
            "must be a subclass of torch.optim.Optimizer, got <func",
        ),
        ("x", "tests.models", SignedConfig, ValueError, "must be given as 'module:Class', got 'tests.models'"),
        ("x", Signed, dict, TypeError, "must be a dataclass derived from OptimizerConfig, got <class 'dict'>"),
        ("x", Signed, SignedConfig(), TypeError, "must be a dataclass derived from OptimizerConfig, got SignedConfig"),
        ("x", Signed, Undecorated, TypeError, "must be a dataclass derived from OptimizerConfig"),
        ("x", Signed, WithPlainField, TypeError, "WithPlainField.beta must be a knob\\(default, allowed, help\\)"),
        ("x", Signed, WithRate, ValueError, "no knob may have the name 'lr', which the Trainer needs"),
    ],
)
def test_what_cannot_be_registered(name, cls, config, error, message):
    before, names = snapshot(), list(OPTIMIZERS)
    with pytest.raises(error, match=message) as caught:
        register_optimizer(name, cls, config)
    assert "\n" not in str(caught.value)
    assert snapshot() == before and list(OPTIMIZERS) == names


def test_a_string_that_names_no_optimizer_is_found_out_when_it_is_used(tmp_path):
    register_optimizer(NAME, "tests.models:Tiny", SignedConfig)
    try:
        with pytest.raises(TypeError, match="optim='signed' must be a subclass of torch.optim.Optimizer"):
            Trainer(llama(), settings(tmp_path)).create_optimizer()
    finally:
        unregister_optimizer(NAME)


def test_what_is_not_registered_cannot_be_unregistered():
    with pytest.raises(ValueError, match="no optimizer 'signd' is registered: there are adafisher, adafisherw"):
        unregister_optimizer("signd")
