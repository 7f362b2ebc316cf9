"""How much faster should embeddings and output heads learn? Losses at several multiples of the learning rate, by model.

    python examples/benchmarks/vocabulary.py --jobs 2

Every model is trained from scratch with the learning rate of the rest fixed, and the multiple r of the vocabulary's
varied, on the tuning split with one seed. Beside the best r stands the one that AdaFisher takes by itself, which goes
by the size of the weights as they are drawn. Finished runs are kept in OUT/MODEL.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf.update.rates import default_multiple
from benchmarks.harness.arms import Arm
from benchmarks.harness.catalogue import make_problem
from benchmarks.harness.contestants import ADAMW, DIAGONAL, ORTHOGONAL
from benchmarks.harness.jobs import TUNING_SEED, Job
from benchmarks.harness.journal import Journal
from benchmarks.harness.laboratory import Laboratory
from benchmarks.harness.masked import MaskedNews
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.problem import Problem
from benchmarks.harness.roles import tables
from benchmarks.harness.runner import Run
from data.text import show_progress
from errors import plain_errors
from tables import markdown

RATIOS = (1.0, 4.0, 16.0, 64.0)
ARMS = (ADAMW, DIAGONAL, ORTHOGONAL)
UNTIED = {"tie_word_embeddings": False}


@dataclass(frozen=True)
class Model:
    title: str
    problem: Problem
    steps: int


def models() -> dict[str, Model]:
    """What is trained, by a short name."""
    return {
        "llama": Model("Llama, tied", make_problem("news"), 200),
        "untied": Model("Llama, untied", NewsProblem(architecture=UNTIED), 200),
        "gpt2": Model("GPT-2", make_problem("gpt2"), 200),
        "bert": Model("BERT", MaskedNews(), 200),
        "t5": Model("T5", make_problem("t5"), 200),
        "vit": Model("ViT", make_problem("vit"), 150),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_flush_denormal(True)
    show_progress(False)
    arms = [arm for arm in ARMS if arm.name in args.arms]
    rows = []
    for name, model in models().items():
        if name in args.models:
            rows += measure(name, model, arms, args)
    header = ["model", "arm", *(f"r = {r:g}" for r in RATIOS), "best r", "RMS of the weights", "our r"]
    report = markdown(header, rows)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(report + "\n")
    print(report)


def measure(name: str, model: Model, arms: Sequence[Arm], args: argparse.Namespace) -> list[list[str]]:
    """The rows of a model."""
    laboratory = Laboratory(model.problem, Journal(args.out / f"{name}.json"), args.jobs)
    plans = {arm.name: plan(arm, model.steps) for arm in arms}
    runs = laboratory.carry_out(plans, model.title, len(RATIOS) * len(arms) * model.steps)
    sizes, ours = drawn(model.problem)
    return [[model.title, arm, *cells(losses), sizes, ours] for arm, losses in runs.items()]


def plan(arm: Arm, steps: int) -> Generator[list[Job], list[Run], dict[float, float]]:
    """One run a ratio."""
    points = [replace(arm.start, ratio=ratio) for ratio in RATIOS]
    runs = yield [Job(arm.at(point), point.lr, TUNING_SEED, steps, "tune") for point in points]
    return {ratio: run.loss for ratio, run in zip(RATIOS, runs, strict=True)}


def cells(losses: Mapping[float, float]) -> list[str]:
    best = min(losses, key=losses.__getitem__)
    return [*(f"{losses[ratio]:.3f}" for ratio in RATIOS), f"{best:g}"]


def drawn(problem: Problem) -> tuple[str, str]:
    """The RMS of each table and head, and the multiple that AdaFisher takes for it."""
    model = problem.model(TUNING_SEED)
    chosen = tables(model)
    weights = [p.detach() for p in model.parameters() if id(p) in chosen and p.dim() > 1]
    rms = [weight.square().mean().sqrt().item() for weight in weights]
    multiples = [default_multiple(weight, weight.new_empty(0)).item() for weight in weights]
    return _range(rms, "{:.3f}"), _range(multiples, "{:.1f}")


def _range(numbers: Sequence[float], form: str) -> str:
    ends = [form.format(number) for number in (min(numbers), max(numbers))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(models()), choices=list(models()), help="default: all")
    names = [arm.name for arm in ARMS]
    parser.add_argument("--arms", nargs="+", default=names, choices=names, help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-vocabulary"), help="folder for runs and report")
    return parser


if __name__ == "__main__":
    with plain_errors():
        main()
