"""Writes docs/coverage.md: which share of each architecture's parameters gets which curvature.

    python docs/generate_coverage.py

The models are those of transformers' default configurations, built without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adafisher_hf import coverage
from adafisher_hf.cli import build_on_meta
from adafisher_hf.insight.coverage import KindShare, summarize

ARCHITECTURES = (
    "gpt2", "llama", "qwen3", "gemma3_text", "mistral", "phi", "gpt_neox", "opt", "bert", "roberta", "distilbert",
    "electra", "deberta-v2", "albert", "modernbert", "t5", "bart", "whisper", "vit", "swin", "convnext", "resnet",
    "clip", "wav2vec2", "mixtral", "gpt_oss", "qwen2_moe", "mamba",
)  # fmt: skip
TABLES = (("linear", "conv1d", "conv", "gradient"), ("embedding", "embedding+linear", "norm", "batchnorm"))
TEXT = """# Coverage

Which curvature the parameters of an architecture get, as a share of its numbers (the default configuration of
transformers, without a task's head unless it is a language model). `embedding+linear` is an embedding tied to the head:
the curvature of both uses adds up. `gradient` is the fallback for what no hook can see (experts stored as one tensor,
position tables, class tokens): row and column means of the squared gradient.

## Of your model

`adafisher-hf coverage MODEL` says it of any model, parameter by parameter, with neither weights nor a network. MODEL is

| MODEL | such as |
| --- | --- |
| a folder with a `config.json`, or with the `adapter_config.json` of PEFT | `out/checkpoint-300` |
| a config file | `my-model/config.json` |
| a model type of transformers | `llama` |
| a model or config class of transformers | `LlamaForCausalLM` |
| any class or function that makes a model without arguments, also of the working directory | `package.module:Class` |
| a model of the Hub whose config is in the cache | `bert-base-uncased` |

Quantized weights are shown as what they were before; `adafisher-hf doctor MODEL` says that they are not trained.

```bash
adafisher-hf coverage GPT2LMHeadModel --summary
```

```text
kind              parameters     numbers  share
conv1d                    96  85,017,600  68.3%
embedding+linear           1  38,597,376  31.0%
embedding                  1     786,432   0.6%
norm                      50      38,400   0.0%
```

With `--json` there is one object. Its keys stay; new ones may be added. `model` is what was asked for, and

| key | is there | a list of objects with |
| --- | --- | --- |
| `kinds` | without `--memory` | `kind`, `parameters`, `numbers`, `share` |
| `parameters` | without `--summary` and `--memory` | `name`, `shape`, `kind`, `owners`, `role`, `treatment` |
| `memory` | with `--memory` | `setting`, `bytes`, `per_parameter` |

`share` is of 1, `parameters` of a kind counts tensors and `numbers` their entries. `bytes` and `per_parameter` are null
where an optimizer cannot say.

In a test of your own, `--fail-under SHARE` ends with status 1 where a smaller share of the numbers than this has a kind
other than `gradient`; the message names what has not:

```bash
adafisher-hf coverage llama --summary --fail-under 0.95
```

## Of 28 architectures

Made by `python docs/generate_coverage.py`.

"""


def main() -> None:
    found = {name: shares_of(name) for name in ARCHITECTURES}
    tables = "\n\n".join(table(found, kinds) for kinds in TABLES)
    (Path(__file__).parent / "coverage.md").write_text(f"{TEXT}{tables}\n", encoding="utf-8")


def shares_of(name: str) -> dict[str, KindShare]:
    shares = {summary.kind: summary for summary in summarize(coverage(build_on_meta(name, "auto")))}
    unknown = shares.keys() - {kind for kinds in TABLES for kind in kinds}
    assert not unknown, f"{name}: {unknown}"
    return shares


def table(found: dict[str, dict[str, KindShare]], kinds: Sequence[str]) -> str:
    lines = [["model", *kinds], ["---"] * (1 + len(kinds))]
    for name, shares in found.items():
        numbers = sum(summary.numbers for summary in shares.values())
        cells = (_percent(shares[kind].share) if kind in shares else "" for kind in kinds)
        lines.append([f"`{name}`, {numbers / 1e6:,.0f} M", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
