"""What is compared, as it is written; and one clear error for what cannot be."""

from __future__ import annotations

import pytest

from adafisher_hf.compare.arms import Arm, parse_arm, parse_arms, shown
from adafisher_hf.compare.defaults import ARMS, guess
from adafisher_hf.compare.errors import CompareError
from adafisher_hf.compare.program import given


def test_an_arm_is_an_optimizer_with_options_and_rates():
    assert parse_arm("adamw_torch lr=1e-4,3e-4") == Arm("adamw_torch", "", (1e-4, 3e-4))
    arm = parse_arm("adafisherw structure=orthogonal lr=1e-3,1e-3,0.003 damping=0.2")
    assert arm == Arm("adafisherw", "structure=orthogonal,damping=0.2", (1e-3, 3e-3))
    assert str(arm) == "adafisherw structure=orthogonal,damping=0.2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' begins with '', which is no optimizer"),
        ("adamw_tourch lr=1", "begins with 'adamw_tourch', .* did you mean 'adamw_torch'?"),
        ("xyz lr=1", r"no optimizer of TrainingArguments \(there are adamw_torch, .*adafisherw"),
        ("adafisherw structure=orthogonal", "needs one lr="),
        ("adafisherw lr=1 lr=2", "needs one lr="),
        ("adafisherw lr=high", "a learning rate must be a number above 0, got 'high'"),
        ("adafisherw lr=1e-3,", "a learning rate must be a number above 0, got ''"),
        ("adafisherw lr=0", "above 0, got '0'"),
        ("adafisherw lr=inf", "above 0, got 'inf'"),
        ("adafisherw structur=orthogonal lr=1", "unknown optim_args key 'structur', did you mean 'structure'?"),
        ("adafisherw structure=diag lr=1", "structure must be one of"),
        ("adafisherw fast lr=1", "malformed optim_args pair 'fast'"),
        ("adafisherw weight_decay=1 lr=1", "use TrainingArguments.weight_decay"),
        ("fadam structure=orthogonal lr=1", "'structure', which is an option of AdaFisher"),
    ],
)
def test_what_is_wrong_with_an_arm_is_said(text, message):
    with pytest.raises(CompareError, match=message):
        parse_arm(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["adafisherw lr=1"], "needs two arms or more, the baseline first"),
        (["adafisherw lr=1", "adafisherw lr=2"], "has 'adafisherw' twice"),
    ],
)
def test_what_is_wrong_with_several_is_said(texts, message):
    with pytest.raises(CompareError, match=message):
        parse_arms(texts)


@pytest.mark.parametrize(("lr", "text"), [(1e-4, "1e-4"), (0.0003, "3e-4"), (1.5e-3, "1.5e-3"), (2, "2e0")])
def test_rates_are_written_as_people_do(lr, text):
    assert shown(lr) == text and float(text) == lr


@pytest.mark.parametrize("kind", ARMS)
def test_the_arms_that_are_taken_by_default_can_be(kind):
    arms = parse_arms(ARMS[kind])
    assert arms[0].optim == "adamw_torch" and len({len(arm.rates) for arm in arms}) == 1


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ("--model_name_or_path gpt2 --do_train", ("pretrained", "model_name_or_path")),
        ("--model-name-or-path=gpt2 --config_name gpt2", ("pretrained", "model_name_or_path")),
        ("--model_name_or_path gpt2 --lora_r 8", ("lora", "lora_r")),
        ("--model_name_or_path gpt2 --lora_r 0", ("pretrained", "model_name_or_path")),
        ("--use_peft --model_name_or_path gpt2", ("lora", "use_peft")),
        ("--model_type gpt2 --tokenizer_name gpt2", ("scratch", "model_type")),
        ("--config_overrides n_layer=2", ("scratch", "config_overrides")),
        ("--do_train --max_steps 3", None),
    ],
)
def test_what_the_model_is_by_the_flags(args, kind):
    assert guess(given(args.split())) == kind
