"""Writes docs/options.md: every option, with its default, range and help from AdaFisherConfig.

python docs/generate_options.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from adafisher_hf.config.adafisher import AdaFisherConfig
from adafisher_hf.config.knobs import allowed_of
from adafisher_hf.preconditioners import CALIBRATED, PRECONDITIONERS

FIRST = ("mode", "structure")
CHANGING = {
    "gamma": "0.95, then 0.8",
    "token_stride": "up to 4",
    "vocabulary_lr": "by the weights",
}  # defaults that no constant stands for
PAGE = Path(__file__).parent / "options.md"
TEXT = """# Options

Nothing has to be set: `optim="adafisherw"` alone is a complete configuration. Learning rate, weight decay, its
exclusions and the schedule stay in `TrainingArguments`, as with any optimizer; `adam_beta1` is the momentum's decay
unless `beta` is set (or the structure has another and `adam_beta1` is left at 0.9); `adam_beta2` and `adam_epsilon` are
not used.

## Where they go

In the Trainer, options are a string of `key=value` pairs:

```python
from transformers import TrainingArguments

import adafisher_hf  # noqa: F401

args = TrainingArguments(
    output_dir="out",
    optim="adafisherw",
    optim_args="structure=kronecker,update_interval=20",
    learning_rate=1e-2,
)
```

In a loop of your own they are keyword arguments, and `beta`, `beta2` and `damping` may differ from group to group:

```python
from adafisher_hf import AdaFisherW

decayed = [p for p in model.parameters() if p.dim() > 1]
others = [p for p in model.parameters() if p.dim() <= 1]
groups = [
    {"params": decayed, "weight_decay": 0.1},
    {"params": others, "damping": 0.3},
]
optimizer = AdaFisherW(groups, model=model, lr=1e-3, update_interval=20)
```

In a file they are an `adafisher_config.json`. The Trainers of this package write one beside every checkpoint, and
`config=FOLDER` reads it back, as `config=USER/REPO` does from [the Hub](hub.md); keys given beside it win:

```python
from adafisher_hf import AdaFisherConfig

AdaFisherConfig(structure="kronecker").save_pretrained("my-run")
args = TrainingArguments(
    output_dir="out",
    optim="adafisherw",
    optim_args="config=my-run,update_interval=5",
)
assert AdaFisherConfig.from_optim_args(args.optim_args).update_interval == 5
```

A wrong key or value is refused when `TrainingArguments` are made, before anything is loaded:

```python
try:
    TrainingArguments(output_dir="out", optim="adafisherw", optim_args="gama=0.9")
except ValueError as error:
    assert "did you mean 'gamma'?" in str(error)
```

So is an option that has no effect with the chosen mode and structure, unless it has its default:

```python
try:
    TrainingArguments(output_dir="out", optim="adafisherw", optim_args="basis_interval=5")
except ValueError as error:
    assert "it belongs to structure='kronecker' or" in str(error)
```

Schedules that cycle the momentum, `OneCycleLR` and `CyclicLR`, move `beta`. When a run is resumed, options marked
*fixed* have to be those that it was started with; all others may change.

## Each of them
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    knobs = sorted(dataclasses.fields(AdaFisherConfig), key=lambda knob: knob.name not in FIRST)
    options = "\n".join(section(knob) for knob in knobs)
    return f"{TEXT}\n{options}\n{defaults()}\nMade by `python docs/generate_options.py`.\n"


def section(knob: dataclasses.Field) -> str:
    default = "depends on the mode, see below" if knob.default is None else f"`{knob.default}`"
    fixed = "\n- fixed when a run is resumed" if knob.metadata["fixed"] else ""
    return f"### {knob.name}\n\n{knob.metadata['help']}\n\n- default: {default}\n- allowed: {allowed(knob)}{fixed}\n"


def allowed(knob: dataclasses.Field) -> str:
    values: Any = allowed_of(AdaFisherConfig, knob.name)
    if isinstance(values, tuple):
        return ", ".join(f"`{value}`" for value in values)
    return f"{'an integer' if 'int' in knob.type else 'a number'} {values}" + (
        ", or `none` for the default" if "None" in knob.type else ""
    )


def defaults() -> str:
    keys = list(dict.fromkeys(key for entry in PRECONDITIONERS.values() for key in entry.defaults))
    lines = [["mode", "structure", *keys], ["---"] * (2 + len(keys))]
    for name, entry in PRECONDITIONERS.items():
        structure = name if entry.mode == CALIBRATED else "diagonal"
        values = (str(entry.all_defaults().get(key, CHANGING.get(key))) for key in keys)
        lines.append([f"`{entry.mode}`", f"`{structure}`", *values])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## Defaults by mode and structure\n\n{table}\n"


if __name__ == "__main__":
    main()
