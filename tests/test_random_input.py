"""Random options, random JSON: what is wrong gets one error that names it, and until then nothing has changed."""

from __future__ import annotations

import json
import random
import warnings

import pytest
import torch

from adafisher_hf import AdaFisherConfig, AdaFisherW
from adafisher_hf.config.adafisher import CONFIG_NAME
from adafisher_hf.config.knobs import Interval, Text, allowed_of, knobs_of
from adafisher_hf.insight.log import read as read_curvature
from adafisher_hf.integrations.checkpoints import is_complete, last_complete
from adafisher_hf.report.folders import read_runs
from tests.report.runs import files

KNOBS = list(knobs_of(AdaFisherConfig))
ODD_KEYS = ["gama", "lr", "weight_decay", "learning_rate", "network", "_unknown", "", " ", "é", "config", "a" * 9999]
ODD_TEXTS = [
    "nan", "inf", "-inf", "1e999", "-1", "0", "1", "2", "0.5", "1e-300", "none", "None", "True", "", " ", "0x10",
    "1_000", "9" * 5000, "diagonal", "kronecker", "paper", "rotated", "x" * 5000, "=", "a=b",
    "٣", "½", "\x00", "1e5", "\ud800",
]  # fmt: skip
ODD_VALUES = [
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, -0.0, float("nan"), float("inf"), 10**400, 10**5000, "", "nan", "paper",
    "diagonal", "kronecker", "rotated", b"x", [], {}, (1,), 1j, object(), torch.tensor(0.5), torch.tensor([1.0, 2.0]),
    int, "x" * 5000,
]  # fmt: skip
QUICK = pytest.param(0.05, id="some")
ALL = pytest.param(1.0, id="all", marks=pytest.mark.slow)
share = pytest.mark.parametrize("share", [QUICK, ALL])


def good(chance, name):
    allowed = allowed_of(AdaFisherConfig, name)
    if isinstance(allowed, Text):
        return chance.choice(["*", "head.*|*.weight"])
    if not isinstance(allowed, Interval):
        return chance.choice(allowed)
    if "int" in str(knobs_of(AdaFisherConfig)[name].type):
        return chance.randint(int(allowed.low), 50)
    return chance.uniform(0.01, 0.99)


def text_of(chance):
    """A string of a few pairs, with a mistake in most of them."""
    names = chance.sample(KNOBS, chance.randint(0, 4)) + chance.choices(ODD_KEYS, k=chance.random() < 0.3)
    pairs = [
        f"{name}={good(chance, name) if name in KNOBS and chance.random() < 0.7 else chance.choice(ODD_TEXTS)}"
        for name in names
    ]
    chance.shuffle(pairs)
    text = chance.choice([",", ",", ", ", ";", ",,", " "]).join(pairs)
    for _ in range(chance.choice([0, 0, 1, 3])):
        i = chance.randint(0, len(text))
        put = chance.choice([",", "=", " ", "\n", "é", "'", "", text[i:][:5]])
        text = text[:i] + put + text[i + chance.randint(0, 2) :]
    return text


@share
def test_random_optim_args(share):
    chance, outcomes = random.Random(1), {"good": 0, "bad": 0}
    for _ in range(int(5000 * share)):
        text = text_of(chance)
        try:
            config = AdaFisherConfig.from_optim_args(text)
        except (ValueError, OSError) as error:
            outcomes["bad"] += 1
            assert_names_the_mistake(error, text)
        else:
            outcomes["good"] += 1
            assert AdaFisherConfig.from_optim_args(config.to_optim_args(explicit=True)) == config
    assert min(outcomes.values()) > 500 * share


def assert_names_the_mistake(error, text):
    message = str(error)
    named = [part for pair in text.split(",") for part in (pair, *pair.split("=")) if part.strip()]
    own_words = ("nothing between two commas", "needs mode='calibrated'", "has no effect with")
    own = any(words in message for words in own_words)
    shown = [part.strip()[:60] for part in named] + [repr(part.strip())[1:60] for part in named if part.strip()]
    assert 20 < len(message) < 1500, message
    assert own or any(part and part in message for part in shown), (message, text)


@share
def test_random_keyword_arguments(share):
    chance, outcomes, model = random.Random(2), {"good": 0, "bad": 0}, torch.nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for i in range(int(5000 * share)):
        names = chance.sample(KNOBS, chance.randint(1, 3)) + chance.choices(["gama", "beta1"], k=chance.random() < 0.1)
        knobs = {}
        for name in names:
            knobs[name] = good(chance, name) if name in KNOBS and chance.random() < 0.6 else chance.choice(ODD_VALUES)
        try:
            if i % 10:
                AdaFisherConfig.from_knobs(knobs).resolved()
            else:
                AdaFisherW(model, **knobs).close()
            outcomes["good"] += 1
        except (TypeError, ValueError) as error:
            outcomes["bad"] += 1
            assert_says_one_of(error, knobs)
        assert not model._forward_hooks and not model._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert min(outcomes.values()) > 1000 * share


def assert_says_one_of(error, words):
    assert any(word in str(error) for word in words) and len(str(error)) < 1500, error


# Files


def random_json(chance, depth=0):
    kind = chance.randrange(8 if depth < 4 else 5)
    if kind < 5:
        return chance.choice([None, True, 0, -1, 1.5, "x", "", "é", 10**30, float("nan"), float("inf"), "step", "loss"])
    size = chance.randint(0, 4)
    if kind == 5:
        return [random_json(chance, depth + 1) for _ in range(size)]
    keys = [*KNOBS, "version", "step", "parameters", "kinds", "log_history", "name", "kind", "", "x"]
    return {chance.choice(keys): random_json(chance, depth + 1) for _ in range(size)}


def damaged(chance, whole):
    """A file cut, with bytes changed, in another encoding, with a value exchanged, or something else altogether."""
    how = chance.randrange(6)
    content = whole.encode()
    if how == 0:
        return content[: chance.randint(0, len(content))]
    if how == 1:
        changed = bytearray(content)
        for _ in range(chance.randint(1, 5)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if how == 2:
        return whole.encode(chance.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]))
    if how == 3:
        return json.dumps(random_json(chance)).encode()
    if how == 4:
        depth = chance.choice([10, 200, 5000])
        return (chance.choice(["[", '{"a":']) * depth).encode() + content
    lines = [json.loads(line) for line in whole.splitlines()] if "\n{" in whole else [json.loads(whole)]
    for line in lines:
        place, key = line, chance.choice(list(line))
        while isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
            key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        place[key] = random_json(chance)
    return "\n".join(map(json.dumps, lines)).encode()


@share
def test_random_config_files(tmp_path, share):
    chance, outcomes, file = random.Random(3), {"good": 0, "bad": 0}, tmp_path / CONFIG_NAME
    AdaFisherConfig(structure="kronecker", gamma=0.5).save_pretrained(tmp_path)
    whole = file.read_text()
    for _ in range(int(1000 * share)):
        content = damaged(chance, whole)
        file.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # keys of a newer version
                config = AdaFisherConfig.from_pretrained(tmp_path)
        except (TypeError, ValueError) as error:
            outcomes["bad"] += 1
            assert_says_one_of(error, [f"{file}: "])
        else:
            outcomes["good"] += 1
            config.save_pretrained(tmp_path / "again")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert AdaFisherConfig.from_pretrained(tmp_path / "again") == config
        assert not file.exists() or file.read_bytes() == content
    assert outcomes["good"] > 10 * share and outcomes["bad"] > 100 * share


@share
def test_random_files_of_a_run(tmp_path, share):
    """A report reads what it can and notes the rest; a checkpoint is complete or not."""
    chance, run, notes = random.Random(4), tmp_path / "run", 0
    checkpoint = run / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    whole = files()
    for _ in range(int(1000 * share)):
        name = chance.choice(list(whole))
        for other, content in whole.items():
            (run / other).write_bytes(damaged(chance, content) if other == name else content.encode())
        (found,) = read_runs([run])
        notes += bool(found.notes)
        read_curvature(run / "curvature.jsonl")
        for parameter in found.parameters():
            assert all(isinstance(x, float) for x in found.layer(parameter, "update_ratio"))
        (checkpoint / "trainer_state.json").write_bytes(damaged(chance, whole["trainer_state.json"]))
        assert is_complete(checkpoint) == (last_complete(run) is not None)
    assert notes > 200 * share
