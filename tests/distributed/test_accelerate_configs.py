"""The config files of examples/accelerate, read by accelerate itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(name, script="script.py"):
    arguments = ["--config_file", str(EXAMPLES / "accelerate" / name), script]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return prepare_multi_gpu_env(args)


def test_fsdp2(monkeypatch):
    for key, value in environment("fsdp2.yaml").items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_ddp():
    found = environment("ddp.yaml")
    assert "ACCELERATE_USE_FSDP" not in found and found["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.slow
def test_ddp_on_cpus(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", EXAMPLES / "accelerate/ddp.yaml"]
    script = [EXAMPLES / "accelerate_loop.py", "--max_steps", "3", "--max_eval_samples", "16"]
    command = [*launch, "--cpu", *script, "--output_dir", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
