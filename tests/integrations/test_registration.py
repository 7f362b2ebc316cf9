"""Registration: names in transformers, round trips of TrainingArguments, and everything restored afterwards."""

import copy
import dataclasses
import functools
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, TrainingArguments, trainer_optimizer
from transformers.modelcard import TrainingSummary
from transformers.training_args import OptimizerNames

import adafisher_hf

from .snapshots import snapshot

NAMES = ("adafisher", "adafisherw")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def registered():
    yield
    adafisher_hf.register()


def training_arguments(tmp_path, cls=TrainingArguments, **kwargs):
    kwargs = {"output_dir": str(tmp_path), "optim": "adafisherw", "use_cpu": True, "report_to": "none", **kwargs}
    return cls(**kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_members(name):
    member = OptimizerNames(name)
    assert member is OptimizerNames[name.upper()] is getattr(OptimizerNames, name.upper())
    assert (member.name, member.value, str.__str__(member)) == (name.upper(), name, name)
    assert isinstance(member, OptimizerNames)
    assert member in list(OptimizerNames)
    assert member in OptimizerNames
    assert name in OptimizerNames._value2member_map_
    assert len(OptimizerNames) == len(list(OptimizerNames))
    assert copy.deepcopy(member) is member
    assert pickle.loads(pickle.dumps(member)) is member


def in_fresh_process(code):
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_unregister_restores_transformers_exactly():
    in_fresh_process("""
from tests.integrations.snapshots import snapshot
before = snapshot()
import adafisher_hf
assert snapshot() != before
adafisher_hf.unregister()
after = snapshot()
for key in before:
    assert after[key] == before[key], key
adafisher_hf.register()
adafisher_hf.register()
adafisher_hf.unregister()
adafisher_hf.unregister()
assert snapshot() == before
""")


def test_unregistered_names_are_refused(tmp_path):
    adafisher_hf.unregister()
    assert not adafisher_hf.is_registered()
    with pytest.raises(ValueError, match="adafisherw is not a valid OptimizerNames"):
        training_arguments(tmp_path)
    assert not hasattr(OptimizerNames, "ADAFISHERW")
    adafisher_hf.register()
    assert adafisher_hf.is_registered()
    assert training_arguments(tmp_path).optim == "adafisherw"


def test_registering_again_changes_nothing():
    before = snapshot()
    adafisher_hf.register()
    importlib.reload(adafisher_hf)
    assert snapshot() == before


def forget_package():
    """Takes every module of ours out of sys.modules and returns them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "adafisher_hf"}


def test_a_second_import_takes_over(tmp_path, model):
    first = adafisher_hf.AdaFisherW  # imported when it is asked for, and the second's can be asked for as well
    ours = forget_package()
    try:
        second = importlib.import_module("adafisher_hf")
        cls, _ = Trainer.get_optimizer_cls_and_kwargs(training_arguments(tmp_path), model)
        assert cls is second.AdaFisherW is not first
        second.unregister()
        assert not hasattr(Trainer.get_optimizer_cls_and_kwargs, "__wrapped__")
        assert not hasattr(TrainingArguments.__post_init__, "__wrapped__")
    finally:
        forget_package()
        sys.modules.update(ours)


def test_a_patch_over_ours_is_left_alone(tmp_path, monkeypatch):
    ours = Trainer.get_optimizer_cls_and_kwargs
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda *args: ours(*args)))
    theirs = vars(Trainer)["get_optimizer_cls_and_kwargs"]
    adafisher_hf.unregister()
    assert vars(Trainer)["get_optimizer_cls_and_kwargs"] is theirs
    cls, _ = Trainer.get_optimizer_cls_and_kwargs(training_arguments(tmp_path, optim="sgd"))
    assert cls is torch.optim.SGD


def test_a_wrapped_patch_over_ours_is_left_alone(monkeypatch):
    """functools.wraps copies the attributes of a function, and with them the mark of ours."""

    @functools.wraps(Trainer.log)
    def theirs(self, *args):
        raise AssertionError("not called here")

    monkeypatch.setattr(Trainer, "log", theirs)
    adafisher_hf.unregister()
    assert Trainer.log is theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [TrainingArguments, Seq2SeqTrainingArguments])
def test_training_arguments_round_trips(tmp_path, name, arguments):
    args = training_arguments(tmp_path, arguments, optim=name, optim_args="gamma=0.9, damping=0.2")
    assert args.optim is OptimizerNames(name)
    assert args.to_dict()["optim"] == name
    assert json.loads(args.to_json_string())["optim"] == name
    for copied in (copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert copied.optim is args.optim
        assert copied.optim_args == args.optim_args
    assert arguments(**_init_values(args)).optim is args.optim


def _init_values(args):
    names = {field.name for field in dataclasses.fields(args) if field.init}
    return {key: value for key, value in args.to_dict().items() if key in names}


@pytest.mark.parametrize("arguments", [TrainingArguments, Seq2SeqTrainingArguments])
def test_argument_parser(tmp_path, arguments):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--optim", "adafisherw", "--optim_args", "gamma=0.9"]
    parser = HfArgumentParser(arguments)
    (args,) = parser.parse_args_into_dataclasses(argv)
    assert (args.optim, args.optim_args) == (OptimizerNames.ADAFISHERW, "gamma=0.9")
    choices = next(action.choices for action in parser._actions if action.dest == "optim")
    assert set(NAMES) <= set(choices)


def test_argument_parser_reads_json(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"output_dir": str(tmp_path), "use_cpu": True, "optim": "adafisher"}))
    (args,) = HfArgumentParser(TrainingArguments).parse_json_file(str(file))
    assert args.optim is OptimizerNames.ADAFISHER


def test_set_optimizer(tmp_path, model):
    args = training_arguments(tmp_path, optim="sgd")
    args.set_optimizer(name="adafisherw", learning_rate=1e-2, weight_decay=0.1, beta1=0.8, args="gamma=0.7")
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert cls is adafisher_hf.AdaFisherW
    assert (kwargs["lr"], kwargs["beta"], kwargs["gamma"]) == (1e-2, 0.8, 0.7)


@pytest.mark.parametrize(("name", "cls"), [("adafisher", "AdaFisher"), ("adafisherw", "AdaFisherW")])
def test_class_and_kwargs(tmp_path, model, name, cls):
    args = training_arguments(tmp_path, optim=name, learning_rate=3e-4, optim_args="damping = 0.2,update_interval=5")
    got, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert got is getattr(adafisher_hf, cls)
    assert kwargs.pop("lr") == 3e-4
    assert kwargs.pop("network") is model
    assert kwargs == adafisher_hf.AdaFisherConfig(damping=0.2, update_interval=5).to_dict()


def test_adam_beta1_is_beta_unless_optim_args_says_otherwise(tmp_path, model):
    def beta(**kwargs):
        cls, knobs = Trainer.get_optimizer_cls_and_kwargs(training_arguments(tmp_path, **kwargs), model)
        return cls(
            model.parameters(), lr=1e-3, network=model, beta=knobs["beta"], structure=knobs["structure"]
        ).config.beta

    assert beta() == 0.9
    assert beta(adam_beta1=0.8) == 0.8
    assert beta(adam_beta1=0.8, optim_args="beta=0.9") == 0.9
    assert beta(optim_args="structure=orthogonal") == 0.8  # its own: 0.9 is what TrainingArguments say unasked
    assert beta(optim_args="structure=orthogonal", adam_beta1=0.95) == 0.95


def test_the_trainer_does_not_parse_optim_args_itself(tmp_path, model):
    # It would strip the spaces and stumble over the second "=".
    folder = tmp_path / "lr=1e-3 first try"
    adafisher_hf.AdaFisherConfig(gamma=0.7).save_pretrained(folder)
    args = training_arguments(tmp_path, optim_args=f"config={folder}")
    assert Trainer.get_optimizer_cls_and_kwargs(args, model)[1]["gamma"] == 0.7


def test_the_handler_alone_does_the_same(tmp_path, model):
    args = training_arguments(tmp_path, optim_args="gamma=0.7")
    context = trainer_optimizer.OptimizerContext(
        args=args, model=model, optimizer_kwargs={}, adam_kwargs={}, optim_args={"gamma": "0.7"}
    )
    handler = trainer_optimizer._OPTIMIZER_HANDLERS[args.optim]
    assert handler(context) == Trainer.get_optimizer_cls_and_kwargs(args, model)


def test_other_optimizers_go_the_way_they_went(tmp_path, model):
    args = training_arguments(tmp_path, optim="sgd", optim_args="momentum=0.5")
    cls, _ = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert cls is torch.optim.SGD
    assert training_arguments(tmp_path, optim="sgd", optim_args="nonsense").optim_args == "nonsense"


@pytest.mark.parametrize("name", NAMES)
def test_no_model(tmp_path, name):
    with pytest.raises(ValueError, match=f'optim="{name}" needs the model'):
        Trainer.get_optimizer_cls_and_kwargs(training_arguments(tmp_path, optim=name))


@pytest.mark.parametrize("text", ["gama=0.9", "gamma", "gamma=2", "a=b=c", "lr=1e-3", "mode=adam", "config=nowhere"])
def test_bad_optim_args_fail_with_the_training_arguments(tmp_path, text):
    with pytest.raises((ValueError, FileNotFoundError)):
        training_arguments(tmp_path, optim_args=text)


def test_bad_optim_args_set_later_fail_before_training(tmp_path, model):
    args = training_arguments(tmp_path, optim="sgd").set_optimizer(name="adafisherw", args="gama=0.9")
    trainer = Trainer(model, args, train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}])
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        trainer.train()


def test_groups_have_the_decay_of_the_trainer(tmp_path, model):
    args = training_arguments(tmp_path, weight_decay=0.1, learning_rate=2e-4)
    optimizer = Trainer(model, args).create_optimizer()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [2e-4, 2e-4]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_model_card_names_optimizer_and_arguments(tmp_path, model):
    trainer = Trainer(model, training_arguments(tmp_path, optim_args="gamma=0.9"))
    card = TrainingSummary.from_trainer(trainer, model_name="tiny").to_model_card()
    line = next(line for line in card.splitlines() if line.startswith("- optimizer:"))
    assert "ADAFISHERW" in line
    assert "gamma=0.9" in card


def test_importing_it_is_cheap_beside_transformers():
    in_fresh_process("""
import sys
import transformers.trainer
before = set(sys.modules)
import adafisher_hf
new = set(sys.modules) - before
known = {"adafisher_hf", "transformers", "wrapt", *sys.stdlib_module_names}
foreign = {name.split(".")[0] for name in new} - known
assert not foreign, foreign
assert "adafisher_hf.integrations.trainer" not in new
""")


def test_importing_it_loads_neither_torch_nor_transformers():
    in_fresh_process("""
import sys
import adafisher_hf
loaded = {name.split(".")[0] for name in sys.modules}
heavy = {"torch", "transformers", "accelerate", "huggingface_hub", "numpy"} & loaded
assert not heavy, heavy
assert adafisher_hf.is_registered()
assert {"AdaFisherW", "AdaFisherTrainer", "coverage"} <= set(dir(adafisher_hf))
""")


BEFORE = {
    "nothing": "",
    "torch": "import torch",
    "transformers": "import transformers",
    "training_args": "import transformers.training_args",
    "trainer_optimizer": "import transformers.trainer_optimizer",
    "models": "from transformers import LlamaForCausalLM",
    "everything": "from transformers import LlamaForCausalLM, Trainer",
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_registration_happens_whatever_was_imported_before(before):
    in_fresh_process(f"""
{before}
import adafisher_hf
assert adafisher_hf.is_registered()
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.training_args import OptimizerNames
from tests.models import llama
assert OptimizerNames("adafisherw") is OptimizerNames.ADAFISHERW
assert "adafisher" in ALL_EXPERTS_FUNCTIONS
choices = next(a.choices for a in HfArgumentParser(TrainingArguments)._actions if a.dest == "optim")
assert "adafisherw" in choices
args = TrainingArguments("out", optim="adafisherw", optim_args="gamma=0.9", use_cpu=True)
assert type(Trainer(llama(), args).create_optimizer()) is adafisher_hf.AdaFisherW
assert hasattr(Trainer.train, "__wrapped__") and hasattr(Trainer.log, "__wrapped__")
assert adafisher_hf.is_registered()
""")


@pytest.mark.parametrize("before", [BEFORE["nothing"], BEFORE["training_args"]])
def test_unregistered_in_the_meantime_nothing_happens(before):
    in_fresh_process(f"""
{before}
import adafisher_hf
adafisher_hf.unregister()
assert not adafisher_hf.is_registered()
from tests.integrations.snapshots import snapshot
without = snapshot()
assert not adafisher_hf.is_registered()
adafisher_hf.register()
assert adafisher_hf.is_registered() and snapshot() != without
adafisher_hf.unregister()
assert snapshot() == without
assert "adafisherw" not in [name for name, *_ in without["members"]] and "train" not in without["modules"]
""")


def test_every_public_name_is_there():
    for name in adafisher_hf.__all__:
        assert getattr(adafisher_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'AdaFischer'"):
        adafisher_hf.AdaFischer  # noqa: B018


def test_a_name_that_transformers_lost_is_said(monkeypatch):
    adafisher_hf.unregister()
    monkeypatch.delattr(trainer_optimizer, "_OPTIMIZER_HANDLERS")
    with pytest.raises(ImportError, match="has no transformers.trainer_optimizer._OPTIMIZER_HANDLERS, which"):
        adafisher_hf.register()
    adafisher_hf.unregister()
