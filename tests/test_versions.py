"""The package with the oldest versions that pyproject.toml names; the newest are those of every other test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")

ROOT = Path(__file__).parents[1]
# torch's oldest build is not asked for: it is gigabytes, and the package registry of a test may not have it.
OLDEST = ("transformers", "accelerate", "huggingface_hub", "wrapt")
WHAT_THEY_NEED = [
    "httpx",
    "httpcore",
    "tokenizers==0.22.*",
    "datasets==4.0.*",
]  # other names or versions than the newest ones do
RUN = """
import torch
import adafisher_hf
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
import transformers, accelerate, huggingface_hub, wrapt
print({m.__name__: m.__version__ for m in (transformers, accelerate, huggingface_hub, wrapt)})
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
args = TrainingArguments(output_dir="out", optim="adafisherw", optim_args="structure=kronecker", max_steps=3,
                         use_cpu=True, report_to="none", save_steps=2)
trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=data)
trainer.train()
trainer.train(resume_from_checkpoint=True)
assert type(trainer.optimizer.optimizer) is adafisher_hf.AdaFisherW and trainer.state.global_step == 3
"""


def lowest() -> dict[str, str]:
    """The lower bounds of pyproject.toml."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in requirements)


def install(folder: Path, *packages: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip(f"no package registry has {packages}")
    assert installed.returncode == 0, installed.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_oldest_versions_train_and_pass_the_tests_of_registration(tmp_path):
    bounds = lowest()
    assert set(OLDEST) | {"torch"} == set(bounds)
    old = tmp_path / "old"
    install(old, *(f"{name}=={bounds[name]}.*" for name in OLDEST), *WHAT_THEY_NEED)
    environment = {**os.environ, "PYTHONPATH": f"{old}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    trained = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    assert f"'transformers': '{bounds['transformers']}." in trained.stdout
    files = ["tests/integrations/test_registration.py", "tests/integrations/test_trainer.py", "tests/test_structure.py"]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    passed = subprocess.run(tests, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert passed.returncode == 0, passed.stdout[-4000:]
