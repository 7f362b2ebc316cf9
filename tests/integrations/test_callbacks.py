"""CurvatureCallback: what is reported, what is written, and that it costs next to nothing."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

import adafisher_hf
from adafisher_hf import AdaFisherConfig, AdaFisherTrainer, AdaFisherW, CurvatureCallback
from adafisher_hf.insight import log as curvature_log
from adafisher_hf.insight.summary import ParameterSummary
from adafisher_hf.integrations.callbacks import COVERAGE_NAME
from tests.integrations.test_trainer import arguments, assert_same, data, weights
from tests.models import llama
from training import train_and_evaluate

FILE = curvature_log.FILE_NAME


class Reporter(TrainerCallback):
    """A tracking service: the Trainer finds it by its name in ``report_to``."""

    seen: list

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


@pytest.fixture
def reported(monkeypatch):
    monkeypatch.setattr(Reporter, "seen", [], raising=False)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "ours", Reporter)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["ours"])
    return Reporter.seen


class Observe(TrainerCallback):
    """The rows as they are at the end of each step."""

    def __init__(self):
        self.rows = {}

    def on_step_end(self, args, state, control, **kwargs):
        optimizer = kwargs["optimizer"].optimizer
        self.rows[state.global_step] = {row.name: row for row in optimizer.summary_rows()}


def lines(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / FILE).read_text().splitlines()]


def train(folder, callbacks=(CurvatureCallback,), cls=Trainer, **kwargs):
    trainer = cls(llama(), arguments(folder, **kwargs), train_dataset=data(), callbacks=list(callbacks))
    trainer.train()
    return trainer


@pytest.mark.parametrize("late", [False, True], ids=["callbacks=", "add_callback"])
@pytest.mark.parametrize("cls", [Trainer, AdaFisherTrainer])
def test_trackers_get_every_parameter_and_the_console_only_kinds(tmp_path, reported, capsys, cls, late):
    observe = Observe()
    args = arguments(tmp_path, report_to=["ours"], eval_strategy="steps", eval_steps=2)
    callbacks = [observe] if late else [observe, CurvatureCallback()]
    trainer = cls(llama(), args, train_dataset=data(), eval_dataset=data(4), callbacks=callbacks)
    if late:
        trainer.add_callback(CurvatureCallback)
    trainer.train()
    losses = [(step, logs) for step, logs in reported if "loss" in logs]
    assert [step for step, _ in losses] == [2, 4]
    for step, logs in losses:
        for name, row in observe.rows[step].items():
            assert logs[f"curvature/{name}/mean"] == row.mean
            assert logs[f"curvature/{name}/log_spread"] == row.log_spread
            assert logs[f"curvature/{name}/update_ratio"] == row.update / row.weight
        assert all(isinstance(value, float) for value in logs.values())
    assert not any("curvature/" in key for _, logs in reported if "loss" not in logs for key in logs)
    kinds = {f"curvature/{kind}/mean" for kind in ("linear", "norm", "embedding+linear")}
    for log in trainer.state.log_history:
        means = {key for key in log if key.startswith("curvature/") and key.endswith("/mean")}
        assert means == (kinds if "loss" in log else set())
    assert "curvature/norm/mean" in (out := capsys.readouterr().out) and "layernorm" not in out


def test_training_is_the_same_with_and_without_it(tmp_path):
    plain, watched = train(tmp_path / "plain", []), train(tmp_path / "watched", logging_steps=1)
    assert_same(weights(plain.model), weights(watched.model))


def test_one_line_a_logging_step(tmp_path):
    observe = Observe()
    train(tmp_path, [observe, CurvatureCallback])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    for line in lines(tmp_path):
        rows = observe.rows[line["step"]]
        assert line["parameters"].keys() == rows.keys()
        for name, row in rows.items():
            written = line["parameters"][name]
            assert written.pop("kind") == row.kind
            expected = {key: getattr(row, key) for key in ("mean", "log_spread", "update", "weight")}
            assert written == pytest.approx(expected, rel=1e-5)


def test_config_and_coverage_lie_beside_it(tmp_path):
    trainer = train(tmp_path)
    expected = AdaFisherConfig(update_interval=2, update_warmup=2).resolved()
    assert AdaFisherConfig.from_pretrained(tmp_path) == expected
    rows = adafisher_hf.coverage(trainer.model)
    content = json.loads((tmp_path / COVERAGE_NAME).read_text())
    assert content["parameters"] == json.loads(json.dumps([row._asdict() for row in rows]))
    assert sum(kind["numbers"] for kind in content["kinds"]) == trainer.model.num_parameters()


@pytest.mark.parametrize("end", ["", '{"step": 5, "parame'], ids=["whole", "truncated"])
def test_a_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path, end):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    options = {"max_steps": 8, "logging_steps": 1, "save_strategy": "steps", "save_steps": 3}
    train(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", [Interrupt, CurvatureCallback], **options)
    file = tmp_path / "cut" / FILE
    assert [line["step"] for line in lines(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    file.write_text(file.read_text() + end)
    args = arguments(tmp_path / "cut", **options)
    Trainer(llama(), args, train_dataset=data(), callbacks=[CurvatureCallback()]).train(resume_from_checkpoint=True)
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [line["step"] for line in resumed] == list(range(1, 9))
    for a, b in zip(whole, resumed, strict=True):
        for name, row in a["parameters"].items():
            # Step 4 does not refresh (update_interval=2): its mean is that of step 3, which no checkpoint keeps.
            expected = {**row, "mean": None} if b["step"] == 4 else row
            assert b["parameters"][name] == expected, (b["step"], name)


def test_a_new_run_in_the_same_folder_starts_anew(tmp_path):
    train(tmp_path, max_steps=4)
    train(tmp_path, max_steps=2)
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_another_optimizer_is_named_once(tmp_path, caplog):
    train(tmp_path, optim="sgd", optim_args=None)
    (warning,) = [record for record in caplog.records if record.name.startswith("adafisher_hf")]
    assert "the optimizer is SGD, not an AdaFisher" in warning.getMessage()
    assert not any((tmp_path / name).exists() for name in (FILE, COVERAGE_NAME, "adafisher_config.json"))


def test_only_the_main_process_writes(tmp_path, caplog):
    args = arguments(tmp_path)
    model = llama()
    state = SimpleNamespace(is_world_process_zero=False, global_step=0, log_history=[{}])
    for optimizer in (AdaFisherW(model, lr=1e-3), torch.optim.SGD(model.parameters())):
        callback = CurvatureCallback()
        callback.on_train_begin(args, state, None, optimizer=optimizer)
        callback.on_log(args, state, None, logs={"loss": 1.0})
    assert list(tmp_path.iterdir()) == [] and not caplog.records


@pytest.mark.parametrize("optim", ["adafisherw", "adamw_torch"])
def test_the_examples_add_it_to_runs_with_adafisher(tmp_path, caplog, optim):
    args = arguments(tmp_path, optim=optim, optim_args=None, do_train=True)
    train_and_evaluate(Trainer(llama(), args, train_dataset=data()))
    assert (tmp_path / FILE).exists() == (optim == "adafisherw")
    assert "CurvatureCallback" not in caplog.text


def test_what_is_not_finite_is_null(tmp_path):
    row = ParameterSummary("w", "linear", math.nan, math.inf, -math.inf, 1.23456789e-30)
    curvature_log.append(tmp_path / FILE, 3, [row])
    expected = {"kind": "linear", "mean": None, "log_spread": None, "update": None, "weight": 1.23457e-30}
    assert lines(tmp_path) == [{"step": 3, "parameters": {"w": expected}}]


def test_unregistered_it_still_writes_the_file(tmp_path):
    model = llama()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2)
    adafisher_hf.unregister()
    try:
        args = arguments(tmp_path, optim="adamw_torch", optim_args=None)
        callbacks = [CurvatureCallback()]
        Trainer(model, args, train_dataset=data(), optimizers=(optimizer, None), callbacks=callbacks).train()
    finally:
        adafisher_hf.register()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_costs_under_one_percent_of_a_step(tmp_path, structure):
    """At the Trainer's default logging interval; `pytest -s` prints the measurement."""
    every = TrainingArguments(tmp_path).logging_steps
    model = llama(vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=4)
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-3, structure=structure)
    ids = torch.randint(0, 2048, (8, 64))

    def step():
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def log():
        callback.figures()
        curvature_log.append(tmp_path / FILE, 1, callback._rows)

    def seconds(function):
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    step()
    callback = CurvatureCallback()
    callback._optimizer = optimizer
    a_step, a_log = (min(seconds(function) for _ in range(4)) for function in (step, log))
    print(
        f"\n{structure}: {a_log * 1e3:.1f} ms a log, {a_step * 1e3:.0f} ms a step: {a_log / every / a_step:.4%} of it"
    )
    assert a_log / every < 0.01 * a_step
