"""Run folders with known numbers in them."""

from __future__ import annotations

import json
from pathlib import Path

LAYERS = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
KINDS = ("embedding", "linear", "linear")
STEPS = (10, 20, 30)


def mean(layer: int, step: int) -> float:
    return 1e-6 * 10**layer / step


def write_run(folder: Path, **overrides: str | bytes | None) -> Path:
    """The files of a run of three logging steps.

    Args:
        folder: of the run.
        overrides: another content for ``state``, ``curvature``, ``coverage`` or ``config``, or None for no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {**files(), **{name_of(key): value for key, value in overrides.items()}}
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def name_of(key: str) -> str:
    return {
        "state": "trainer_state.json",
        "curvature": "curvature.jsonl",
        "coverage": "coverage.json",
        "config": "adafisher_config.json",
    }[key]


def files() -> dict[str, str]:
    history = [
        {"step": step, "loss": 8.0 - step / 10, "grad_norm": 1.0 / step, "learning_rate": 1e-3 / step} for step in STEPS
    ]
    history += [{"step": 20, "eval_loss": 6.5, "eval_runtime": 1.0}, {"step": 30, "eval_loss": 6.25}]
    # The optimizer's groups have another order than the model.
    lines = [
        {"step": step, "parameters": {LAYERS[i]: _row(i, step) for i in (2, 0, 1)}}
        for step in STEPS
    ]  # fmt: skip
    coverage = {
        "kinds": [
            {"kind": "embedding", "parameters": 1, "numbers": 60, "share": 0.6},
            {"kind": "linear", "parameters": 2, "numbers": 40, "share": 0.4},
        ],
        "parameters": [
            {"name": name, "shape": [4, 5], "kind": kind, "owners": [name.removesuffix(".weight")]}
            for name, kind in zip(LAYERS, KINDS, strict=True)
        ],
    }
    return {
        "trainer_state.json": json.dumps({"global_step": 30, "max_steps": 40, "log_history": history}, indent=2),
        "curvature.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "coverage.json": json.dumps(coverage),
        "adafisher_config.json": json.dumps({"version": 1, "mode": "calibrated", "damping": 0.1, "gamma": None}),
    }


def _row(layer: int, step: int) -> dict:
    return {"kind": KINDS[layer], "mean": mean(layer, step), "log_spread": 0.1 * layer, "update": 0.5, "weight": 100.0}
