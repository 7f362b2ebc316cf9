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

from tests.distributed.ranks import free_port

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


TELL = """
import sys
from accelerate import Accelerator
state = Accelerator().state
open(f"{sys.argv[1]}/{state.process_index}", "w").write(f"{state.device.type} {state.num_processes} {state.backend}")
Accelerator().end_training()
"""


def launched(*options, **environment):
    """Runs ``accelerate launch`` with ddp.yaml and fails as it does."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", EXAMPLES / "accelerate/ddp.yaml"]
    command, env = list(map(str, [*launch, *options])), {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def processes(tmp_path, *options, **environment):
    """What every process that accelerate starts is told, in the order of the ranks."""
    (tmp_path / "tell.py").write_text(TELL)
    launched(*options, tmp_path / "tell.py", tmp_path, **environment)
    return [file.read_text() for file in sorted(tmp_path.glob("[0-9]"))]


def test_ddp_on_cpus_is_two_processes(tmp_path):
    found = processes(tmp_path, "--main_process_port", free_port(), ACCELERATE_USE_CPU="true")
    assert found == ["cpu 2 gloo", "cpu 2 gloo"]


def test_the_flag_for_cpus_is_one_process_as_the_file_says(tmp_path):
    """If this fails, accelerate has changed, and the comment in ddp.yaml with it."""
    assert "accelerate's own --cpu it starts" in (EXAMPLES / "accelerate/ddp.yaml").read_text()
    found = processes(tmp_path, "--cpu")
    assert len(found) == 1 and found[0].startswith("cpu 1 ")


@pytest.mark.slow
def test_a_loop_under_ddp_on_cpus(tmp_path):
    script = [EXAMPLES / "accelerate_loop.py", "--max_steps", "3", "--max_eval_samples", "16"]
    options = ["--main_process_port", free_port(), *script, "--output_dir", tmp_path]
    assert "nan" not in launched(*options, ACCELERATE_USE_CPU="true")
