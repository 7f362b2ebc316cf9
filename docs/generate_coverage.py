"""Writes docs/coverage.md: which share of each architecture's parameters gets which curvature.

    python docs/generate_coverage.py

The models are those of transformers' default configurations, built without weights.
"""

from __future__ import annotations

from pathlib import Path

from adafisher_hf import coverage
from adafisher_hf.cli import build_on_meta
from adafisher_hf.insight.coverage import summarize

ARCHITECTURES = (
    "gpt2", "llama", "qwen3", "gemma3_text", "mistral", "phi", "gpt_neox", "opt", "bert", "roberta", "distilbert",
    "electra", "deberta-v2", "albert", "modernbert", "t5", "bart", "whisper", "vit", "swin", "convnext", "resnet",
    "clip", "wav2vec2", "mixtral", "gpt_oss", "qwen2_moe", "mamba",
)  # fmt: skip
KINDS = ("linear", "conv1d", "conv", "embedding", "embedding+linear", "norm", "batchnorm", "gradient")
TEXT = """# Coverage

Which curvature the parameters of an architecture get, as a share of its numbers (the default configuration of
transformers, without a task's head unless it is a language model). `embedding+linear` is an embedding tied to the head:
the curvature of both uses adds up. `gradient` is the fallback for what no hook can see (experts stored as one tensor,
position tables, class tokens): row and column means of the squared gradient. `adafisher-hf coverage MODEL` prints the
same for any model, parameter by parameter.

Made by `python docs/generate_coverage.py`.

"""


def main() -> None:
    lines = [["model", "parameters", *KINDS], ["---"] * (2 + len(KINDS)), *map(row, ARCHITECTURES)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (Path(__file__).parent / "coverage.md").write_text(f"{TEXT}{table}\n", encoding="utf-8")


def row(name: str) -> list[str]:
    shares = {summary.kind: summary for summary in summarize(coverage(build_on_meta(name, "auto")))}
    unknown = shares.keys() - set(KINDS)
    assert not unknown, f"{name}: {unknown}"
    numbers = sum(summary.numbers for summary in shares.values())
    return [f"`{name}`", f"{numbers / 1e6:,.0f} M", *(_percent(shares[k].share) if k in shares else "" for k in KINDS)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
