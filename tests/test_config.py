"""AdaFisherConfig: validation, optim_args, and files."""

import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from adafisher_hf import AdaFisherW
from adafisher_hf.config import Interval, OptimizerConfig, knob
from adafisher_hf.config.adafisher import CONFIG_NAME, AdaFisherConfig
from adafisher_hf.config.knobs import Text, allowed_of, help_of
from adafisher_hf.preconditioners import PRECONDITIONERS, find, modes, structures

KNOBS = {knob.name: knob for knob in dataclasses.fields(AdaFisherConfig)}


def _values(knob):
    allowed = allowed_of(AdaFisherConfig, knob.name)
    if isinstance(allowed, Text):
        values = st.sampled_from(["*.k_proj.*", "a|b*", "[ab].c?", "0"])
    elif not isinstance(allowed, Interval):
        values = st.sampled_from(allowed)
    elif "int" in knob.type:
        values = st.integers(allowed.low, 10**9)
    else:
        high = None if allowed.high == math.inf else allowed.high
        values = st.floats(
            allowed.low, high, exclude_min=allowed.open_low, exclude_max=high is not None, allow_infinity=False
        )
    return st.none() | values if "None" in knob.type else values


@st.composite
def configs(draw):
    knobs = {name: draw(_values(knob)) for name, knob in KNOBS.items()}
    if knobs["structure"] != "diagonal":
        knobs["mode"] = "calibrated"
    if knobs["lora"] == "pair":
        knobs["gradient_release"] = False
    return AdaFisherConfig(**without_vain(knobs))


def without_vain(knobs):
    """Less the options that have no effect with this mode and structure."""
    vain = find(knobs["mode"], knobs["structure"]).without
    return {name: value for name, value in knobs.items() if name not in vain}


def test_defaults():
    config = AdaFisherConfig()
    assert (config.beta, config.mode, config.beta2, config.update_interval) == (None, "calibrated", 0.95, 10)
    assert (config.damping, config.gamma, config.update_warmup) == (None, None, None)
    assert (config.structure, config.kernel) == ("diagonal", "auto")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("calibrated", (0.1, None, 100)), ("paper", (1e-3, 0.8, 0)), ("reference", (1e-3, 0.8, 0))],
)
def test_resolved_fills_in_the_defaults_of_the_mode(mode, expected):
    config = AdaFisherConfig(mode=mode).resolved()
    assert (config.damping, config.gamma, config.update_warmup) == expected
    assert (config.beta, config.nesterov) == (0.9, False)
    assert config.resolved() == config


@pytest.mark.parametrize("mode", modes())
def test_resolved_keeps_what_was_set(mode):
    chosen = dict(beta=0.5, nesterov=True, damping=0.5, gamma=0.25, update_warmup=3, token_stride=1, vocabulary_lr=2.0)
    config = AdaFisherConfig(mode=mode, **chosen)
    assert config.resolved() == config


@given(configs())
@example(AdaFisherConfig(damping=1e-07, beta=0.1 + 0.2, beta2=1 - 2**-53, gamma=5e-324, update_interval=10**20))
def test_optim_args_round_trip(config):
    for text in (config.to_optim_args(), config.to_optim_args(explicit=True)):
        assert AdaFisherConfig.from_optim_args(text) == config
    assert AdaFisherConfig.from_optim_args(text).to_optim_args(explicit=True) == text
    assert set(KNOBS) == {pair.partition("=")[0] for pair in text.split(",")}


@given(configs())
def test_file_round_trip(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    assert AdaFisherConfig.from_pretrained(folder) == config
    assert AdaFisherConfig.from_pretrained(folder / CONFIG_NAME) == config
    assert AdaFisherConfig.from_optim_args(f"config={folder}") == config


@given(configs())
def test_pickle_and_copy_round_trip(config):
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


@pytest.mark.parametrize("text", [None, "", "  "])
def test_empty_optim_args_are_the_defaults(text):
    assert AdaFisherConfig.from_optim_args(text) == AdaFisherConfig()
    assert AdaFisherConfig().to_optim_args() == ""


def test_a_comma_at_the_end_is_allowed():
    for text in ("gamma=0.9,update_interval=5,", "gamma=0.9,update_interval=5 , "):
        assert AdaFisherConfig.from_optim_args(text) == AdaFisherConfig(gamma=0.9, update_interval=5)


def test_optim_args_with_spaces_and_none():
    config = AdaFisherConfig.from_optim_args(" gamma = 0.9 , update_interval=5,damping=none, mode=paper ")
    assert config == AdaFisherConfig(gamma=0.9, update_interval=5, damping=None, mode="paper")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama=0.9", r"unknown optim_args key 'gama', did you mean 'gamma'\?"),
        ("warmup=3", r"did you mean 'update_warmup'\?"),
        ("zzz=3", r"unknown optim_args key 'zzz' \(valid keys: beta, mode"),
        ("network=3", "unknown optim_args key 'network'"),
        ("_unknown=3", "unknown optim_args key '_unknown'"),
        ("gamma", "malformed optim_args pair 'gamma'"),
        ("gamma=", "malformed optim_args pair 'gamma='"),
        ("=0.9", "malformed optim_args pair '=0.9'"),
        ("gamma=0.9,,beta=0.9", "'gamma=0.9,,beta=0.9' has nothing between two commas, .*: remove one"),
        ("gamma=0.9,,", "has nothing between two commas"),
        (",gamma=0.9", "has nothing between two commas, or before the first"),
        (",", "has nothing between two commas, or before the first"),
        ("gamma=0.9=0.8", "malformed optim_args pair 'gamma=0.9=0.8'"),
        ("gamma=0.9 beta=0.9", "malformed optim_args pair"),
        ("gamma=0.9,gamma=0.9", "'gamma' is given twice"),
        ("config=a,config=b", "'config' is given twice"),
        ("gamma=1", r"gamma must be a number in \[0, 1\), or none, got '1'"),
        ("gamma=-0.1", "gamma must be"),
        ("gamma=nan", "gamma must be"),
        ("damping=inf", "damping must be a number > 0"),
        ("damping=0", "damping must be a number > 0"),
        ("beta=high", "beta must be a number"),
        ("beta2=none", "beta2 must be a number"),
        ("orthogonal_exclude=  ,beta=0.5", "malformed optim_args pair"),
        ("iteration=cubic", "iteration must be one of 'newton_schulz', 'polar_express', got 'cubic'"),
        ("nesterov=1", "nesterov must be one of True, False, or none, got '1'"),
        ("vocabulary_lr=0", "vocabulary_lr must be a number > 0, or none, got '0'"),
        ("beta=True", "beta must be a number"),
        ("update_interval=0", "update_interval must be an integer >= 1"),
        ("update_interval=2.5", "update_interval must be an integer >= 1"),
        ("update_warmup=-1", "update_warmup must be an integer >= 0"),
        ("mode=adam", "mode must be one of 'calibrated', 'paper', 'reference', got 'adam'"),
        ("structure=dense", "structure must be one of 'diagonal'"),
        ("kernel=cuda", "kernel must be one of"),
        ("lr=1e-3", "cannot set 'lr': use TrainingArguments.learning_rate"),
        ("learning_rate=1e-3", "cannot set 'learning_rate': use TrainingArguments.learning_rate"),
        ("weight_decay=0.1", "cannot set 'weight_decay': use TrainingArguments.weight_decay"),
    ],
)
def test_bad_optim_args(text, message):
    with pytest.raises(ValueError, match=message):
        AdaFisherConfig.from_optim_args(text)


def test_optim_args_must_be_a_string():
    with pytest.raises(TypeError, match="optim_args must be a string"):
        AdaFisherConfig.from_optim_args({"gamma": 0.9})


@pytest.mark.parametrize(
    "knobs",
    [
        {"gamma": 2},
        {"gamma": math.nan},
        {"damping": 0.0},
        {"damping": math.inf},
        {"beta": -0.1},
        {"beta2": 1.0},
        {"update_interval": 0},
        {"mode": "adam"},
        {"structure": "dense"},
        {"kernel": "cuda"},
    ],
)
def test_direct_construction_checks_ranges(knobs):
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must be"):
        AdaFisherConfig(**knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"gamma": "0.9"},
        {"beta2": None},
        {"beta": True},
        {"update_interval": 2.0},
        {"update_interval": True},
        {"mode": 1},
    ],
)
def test_direct_construction_checks_types(knobs):
    with pytest.raises(TypeError, match=f"{next(iter(knobs))} must be"):
        AdaFisherConfig(**knobs)


def test_integers_become_floats():
    config = AdaFisherConfig(damping=1, beta=0)
    assert isinstance(config.damping, float)
    assert isinstance(config.beta, float)


def test_config_is_read_first_and_other_keys_override_it(tmp_path):
    AdaFisherConfig(gamma=0.5, beta=0.8).save_pretrained(tmp_path)
    config = AdaFisherConfig.from_optim_args(f"gamma=0.6,config={tmp_path}")
    assert (config.gamma, config.beta) == (0.6, 0.8)


def test_config_path_may_hold_an_equals_sign(tmp_path):
    folder = tmp_path / "lr=1e-3"
    AdaFisherConfig(gamma=0.5).save_pretrained(folder)
    assert AdaFisherConfig.from_optim_args(f"config={folder}").gamma == 0.5


def test_defaults_count_only_where_nothing_else_speaks(tmp_path):
    AdaFisherConfig(beta=0.7).save_pretrained(tmp_path)
    defaults = {"beta": 0.5}
    assert AdaFisherConfig.from_optim_args(None, defaults=defaults).beta == 0.5
    assert AdaFisherConfig.from_optim_args("beta=0.9", defaults=defaults).beta == 0.9
    assert AdaFisherConfig.from_optim_args(f"config={tmp_path}", defaults=defaults).beta == 0.7


def test_another_mode_than_the_saved_one_takes_its_own_defaults(tmp_path):
    AdaFisherConfig(gamma=0.5).resolved().save_pretrained(tmp_path)
    config = AdaFisherConfig.from_optim_args(f"config={tmp_path},mode=paper").resolved()
    assert (config.damping, config.update_warmup, config.gamma) == (1e-3, 0, 0.5)


# Options without effect

IN_VAIN = [
    ("max_factor_dim", 64, {}, "structure='kronecker' or structure='orthogonal', leave it out"),
    ("basis_interval", 5, {}, "structure='kronecker' or structure='orthogonal', leave it out"),
    ("narrow_side", False, {}, "structure='orthogonal', leave it out"),
    ("orthogonal_exclude", "a", {"structure": "kronecker"}, "structure='orthogonal', leave it out"),
    ("second_moment", "rotated", {}, "structure='kronecker', leave it out"),
    ("second_moment", "rotated", {"mode": "paper"}, "structure='kronecker', leave it out"),
    ("beta2", 0.5, {"mode": "paper"}, "mode='calibrated', leave it out"),
    ("beta2", 0.5, {"mode": "reference"}, "mode='calibrated', leave it out"),
    ("token_stride", 2, {"mode": "reference"}, "mode='calibrated' or mode='paper', leave it out"),
]


@pytest.mark.parametrize(("name", "value", "others", "message"), IN_VAIN)
def test_an_option_without_effect_is_refused(name, value, others, message):
    message = f"{name}={value} has no effect with mode=.*, structure=.*: it belongs to {message}"
    model = torch.nn.Linear(2, 2)
    text = ",".join(f"{key}={value}" for key, value in {**others, name: value}.items())
    for make in (
        lambda: AdaFisherConfig(**others, **{name: value}),
        lambda: AdaFisherConfig.from_optim_args(text),
        lambda: AdaFisherW(model, **others, **{name: value}),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("entry", PRECONDITIONERS.values(), ids=PRECONDITIONERS)
def test_the_default_of_an_option_without_effect_is_none(entry, tmp_path):
    """Named or not, and in whatever has every option: a dict, a string, a file."""
    structure = next((name for name in structures() if PRECONDITIONERS[name] is entry), "diagonal")
    config = AdaFisherConfig(mode=entry.mode, structure=structure).resolved()
    assert AdaFisherConfig(**config.to_dict()) == config
    assert AdaFisherConfig.from_optim_args(config.to_optim_args(explicit=True)) == config
    config.save_pretrained(tmp_path)
    assert AdaFisherConfig.from_optim_args(f"config={tmp_path}") == config
    AdaFisherW(torch.nn.Linear(2, 2), **config.to_dict())


def test_a_file_that_was_saved_with_options_without_effect_is_read(tmp_path):
    content = {"version": 1, **AdaFisherConfig().to_dict(), "max_factor_dim": 64, "second_moment": "rotated"}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(content))
    assert AdaFisherConfig.from_pretrained(tmp_path) == AdaFisherConfig()
    with pytest.raises(ValueError, match="basis_interval=5 has no effect"):
        AdaFisherConfig.from_optim_args(f"config={tmp_path},basis_interval=5")
    for change in ({"max_factor_dim": 0}, {"max_factor_dim": "64"}, {"mode": ["paper"]}):
        (tmp_path / CONFIG_NAME).write_text(json.dumps({**content, **change}))
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(change))} must be"):
            AdaFisherConfig.from_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text('{"max_factor_dim": 64}')  # written by hand
    with pytest.raises(ValueError, match="max_factor_dim=64 has no effect"):
        AdaFisherConfig.from_pretrained(tmp_path)


def test_another_structure_than_the_saved_one_has_no_use_for_its_options(tmp_path):
    AdaFisherConfig(structure="kronecker", max_factor_dim=64, gamma=0.5).resolved().save_pretrained(tmp_path)
    config = AdaFisherConfig.from_optim_args(f"config={tmp_path},structure=diagonal").resolved()
    assert config == AdaFisherConfig(gamma=0.5).resolved()


def test_every_option_is_of_use_to_someone():
    for name in KNOBS:
        assert any(name not in entry.without for entry in PRECONDITIONERS.values())
    assert all(set(entry.without) <= set(KNOBS) for entry in PRECONDITIONERS.values())


def test_the_file_says_its_version_and_every_knob(tmp_path):
    AdaFisherConfig().save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert content.pop("version") == 1
    assert content == AdaFisherConfig().to_dict()
    assert set(content) == set(KNOBS)


def test_keys_of_a_newer_version_are_kept_with_a_warning(tmp_path):
    (tmp_path / CONFIG_NAME).write_text('{"version": 9, "gamma": 0.5, "phase": {"of": "moon"}}')
    with pytest.warns(UserWarning, match="version 9, newer than 1: upgrade adafisher_hf; it .* does not know: phase"):
        config = AdaFisherConfig.from_pretrained(tmp_path)
    assert config == AdaFisherConfig(gamma=0.5)
    config.resolved().save_pretrained(tmp_path / "again")
    content = json.loads((tmp_path / "again" / CONFIG_NAME).read_text())
    assert (content["version"], content["phase"]) == (9, {"of": "moon"})
    with pytest.warns(UserWarning, match="does not know: phase"):
        AdaFisherConfig.from_optim_args(f"config={tmp_path / 'again'}")


def test_a_newer_version_without_unknown_keys_warns_too(tmp_path):
    (tmp_path / CONFIG_NAME).write_text('{"version": 2, "gamma": 0.5}')
    with pytest.warns(UserWarning, match=r"version 2, newer than 1: upgrade adafisher_hf$"):
        AdaFisherConfig.from_pretrained(tmp_path)


def test_a_file_of_this_version_warns_of_nothing(tmp_path):
    AdaFisherConfig().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdaFisherConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('{"gamma": "high"}', TypeError, "gamma must be a number"),
        ('{"gamma": 3}', ValueError, "gamma must be a number"),
        ('{"gamma": NaN}', ValueError, "gamma must be a number"),
        ('{"update_interval": 2.5}', TypeError, "update_interval must be an integer"),
        ('{"mode": null}', TypeError, "mode must be one of"),
        ('{"version": "1"}', TypeError, "version must be an integer"),
        ('{"version": true}', TypeError, "version must be an integer"),
        ('{"gamma": 0.5', ValueError, "is not valid JSON"),
        ("\x00\x01", ValueError, "is not valid JSON"),
        ("", ValueError, "is not valid JSON"),
        ("[1]", TypeError, "must hold a JSON object, got list"),
        ("gamma: 3", ValueError, "is not valid JSON"),
    ],
)
def test_bad_files(tmp_path, content, error, message):
    (tmp_path / CONFIG_NAME).write_text(content)
    with pytest.raises(error, match=message) as caught:
        AdaFisherConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        AdaFisherConfig.from_optim_args(f"config={tmp_path}")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AdaFisherConfig.from_pretrained(tmp_path / "nowhere")


def test_save_into_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        AdaFisherConfig().save_pretrained(file)


@pytest.mark.parametrize("place", ["nowhere", "./USER/REPO", "../USER/REPO", "/USER/REPO", "a/b/c", "~/b"])
def test_what_cannot_be_a_repository_is_not_looked_for_on_the_hub(place):
    with pytest.raises(FileNotFoundError, match="give a folder that holds an adafisher_config.json, or USER/REPO"):
        AdaFisherConfig.from_pretrained(place)


def test_offline_the_message_says_what_to_do(tmp_path):
    message = "no such folder here, it is not in the cache, and the Hub must not be asked .* load it once with a conn"
    with pytest.raises(FileNotFoundError, match=message):
        AdaFisherConfig.from_optim_args("config=user/repo@v1")
    with pytest.raises(FileNotFoundError, match=message):
        AdaFisherConfig.from_pretrained("user/repo", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(ConnectionError, match="not pushed to 'user/repo': HF_HUB_OFFLINE=1 is set: unset it, then"):
        AdaFisherConfig().save_pretrained(tmp_path, push_to_hub=True, repo_id="user/repo")
    assert AdaFisherConfig.from_pretrained(tmp_path) == AdaFisherConfig()  # what was saved is there


def test_subfolder_of_a_folder(tmp_path):
    AdaFisherConfig(gamma=0.5).save_pretrained(tmp_path / "checkpoint-3")
    assert AdaFisherConfig.from_pretrained(tmp_path, subfolder="checkpoint-3").gamma == 0.5


def test_a_folder_with_an_at_sign_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AdaFisherConfig(gamma=0.5).save_pretrained("user/run@v1")
    assert AdaFisherConfig.from_optim_args("config=user/run@v1").gamma == 0.5


def test_help_speaks_of_every_knob():
    text = help_of(AdaFisherConfig)
    for found in KNOBS.values():
        assert found.name in text
        assert found.metadata["help"] in text


def test_importing_a_config_loads_nothing_heavy():
    code = """
import sys
from adafisher_hf.config.adafisher import AdaFisherConfig
AdaFisherConfig.from_optim_args("damping=0.1,structure=kronecker").resolved().to_optim_args(explicit=True)
assert not {"torch", "transformers", "huggingface_hub", "numpy"} & {name.split(".")[0] for name in sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


FLAVOURS = ["sweet"]


@dataclass(frozen=True, kw_only=True)
class SomeConfig(OptimizerConfig):
    flavour: str = knob("sweet", lambda: tuple(FLAVOURS), "of a registry")
    ahead: bool = knob(False, (True, False), "look ahead")
    maybe: bool | None = knob(None, (True, False), "look back")
    rate: float = knob(0.5, Interval(0, 1), "of something")


def test_the_choices_of_a_registry_are_those_it_has_now(monkeypatch):
    for make in (lambda: SomeConfig(flavour="sour"), lambda: SomeConfig.from_optim_args("flavour=sour")):
        with pytest.raises(ValueError, match="flavour must be one of 'sweet', got 'sour'"):
            make()
    monkeypatch.setattr(sys.modules[__name__], "FLAVOURS", ["sweet", "sour"])
    assert SomeConfig(flavour="sour") == SomeConfig.from_optim_args("flavour=sour")
    assert "flavour = sweet  (one of 'sweet', 'sour')" in help_of(SomeConfig)


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("False", False), ("false", False)])
def test_switches(text, value):
    config = SomeConfig.from_optim_args(f"ahead={text},maybe={text}")
    assert (config.ahead, config.maybe) == (value, value)
    assert SomeConfig.from_optim_args(config.to_optim_args(explicit=True)) == config


def test_a_switch_is_no_number_and_a_number_no_switch():
    for knobs in ({"ahead": 1}, {"ahead": "true"}, {"ahead": None}, {"rate": False}):
        with pytest.raises(TypeError, match=f"{next(iter(knobs))} must be"):
            SomeConfig(**knobs)
    for text in ("ahead=1", "ahead=yes", "ahead=none", "maybe=1"):
        with pytest.raises(ValueError, match="must be one of True, False(, or none)?, got"):
            SomeConfig.from_optim_args(text)
    assert SomeConfig.from_optim_args("maybe=none").maybe is None


def test_the_config_of_another_optimizer_has_a_file_of_its_own(tmp_path):
    config = SomeConfig(rate=0.25, ahead=True)
    config.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["optimizer_config.json"]
    assert SomeConfig.from_pretrained(tmp_path) == config.resolved() == config
    with pytest.raises(FileNotFoundError, match="no optimizer config at 'nowhere/optimizer_config.json': give a"):
        SomeConfig.from_pretrained("nowhere")
    with pytest.raises(TypeError, match="unknown argument 'rat', did you mean 'rate'"):
        SomeConfig.from_knobs({"rat": 1})


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AdaFisherConfig().beta = 0.5
