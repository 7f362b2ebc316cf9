"""What each part of structure="orthogonal" is worth: one change at a time, on the tuning split.

    python examples/benchmarks/orthogonal_parts.py --settings runs/bench-pretrain/news-128-300/chosen.json --jobs 2
    python examples/benchmarks/orthogonal_parts.py --problem gpt2 --settings .../gpt2-128-300/chosen.json --jobs 2

Everything else stays at the best setting that the pretraining benchmark found. Three parts have no option, and are
taken out here: the curvature of the hidden matrices, the graft (their update gets the fixed length of Muon's), and the
splitting of fused projections. Finished runs are kept in OUT/PROBLEM-WIDTH-STEPS/runs.json. --clock adds the time of a
step, taken by turns; let the machine be idle then.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherConfig, AdaFisherW
from adafisher_hf.layers import Layout
from adafisher_hf.preconditioners import PRECONDITIONERS
from adafisher_hf.preconditioners.base import Direction, State
from adafisher_hf.preconditioners.orthogonal import Orthogonal, Orthogonalised
from benchmarks.harness.arms import Arm, Groups, Point
from benchmarks.harness.catalogue import WIDTHS, make_problem, title_of
from benchmarks.harness.contest import read_points
from benchmarks.harness.contestants import ORTHOGONAL
from benchmarks.harness.jobs import TUNING_SEED, Job
from benchmarks.harness.journal import Journal
from benchmarks.harness.laboratory import Laboratory, Plan
from benchmarks.harness.peers.matrices import ADAM_SIZE
from benchmarks.harness.problem import Problem
from benchmarks.harness.roles import hidden_matrices
from benchmarks.harness.runner import Run
from benchmarks.harness.standing import difference, estimate
from benchmarks.harness.timing import Timing, time_arms, timed_steps
from data.text import show_progress
from errors import plain_errors
from tables import markdown

FULL = "all parts"
OPTIONS: dict[str, Sequence[Any]] = {
    "nesterov": (False,),
    "vocabulary_lr": (1.0,),
    "narrow_side": (False,),
    "update_warmup": (0, 30, 50, 100),
    "iteration_steps": (3, 5, 8),
    "iteration": ("polar_express",),
    "token_stride": (1, 4),
}


class Flat(Orthogonal):
    """F̂ = 1 for hidden matrices."""

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        direction = super().direction(state, layouts, damping)
        if not isinstance(direction, Orthogonalised):
            return direction
        quotient = direction.quotient
        ones = torch.ones_like(quotient.damping)
        flat = dataclasses.replace(quotient, rows=torch.zeros_like(quotient.rows), damping=ones)
        return dataclasses.replace(direction, quotient=flat)


class Whole(Orthogonal):
    """A fused projection is one matrix."""

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        direction = super().direction(state, layouts, damping)
        return dataclasses.replace(direction, fused=None) if isinstance(direction, Orthogonalised) else direction


VARIANTS = {"flat": Flat, "whole": Whole}


def variant(groups: Groups, model: nn.Module, *, structure: str, **knobs: Any) -> torch.optim.Optimizer:
    """One of VARIANTS, which is a structure for as long as the optimizer is made."""
    PRECONDITIONERS[structure] = dataclasses.replace(PRECONDITIONERS["orthogonal"], target=VARIANTS[structure])
    try:
        return AdaFisherW(groups, model=model, structure=structure, **knobs)
    finally:
        del PRECONDITIONERS[structure]


class FixedLength(AdaFisherW):
    """Updates of hidden matrices as long as Muon's, whatever the length of the momentum."""

    hidden: Sequence[nn.Parameter] = ()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        before = [parameter.clone() for parameter in self.hidden]
        super().step(closure)
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for parameter, old in zip(self.hidden, before, strict=True):
            kept = old.mul_(1 - lr * decay)
            update = parameter - kept
            length = lr * ADAM_SIZE * parameter.numel() ** 0.5
            parameter.copy_(kept + update * _ratio(length, update.norm()))


def fixed_length(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    optimizer = FixedLength(groups, model=model, **knobs)
    hidden = hidden_matrices(model)
    optimizer.hidden = [parameter for parameter in groups[0]["params"] if id(parameter) in hidden]
    return optimizer


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    show_progress(False)
    problem = make_problem(args.problem, args.width)
    out = args.out / f"{args.problem}-{args.width or WIDTHS[args.problem]}-{args.steps}"
    point = read_points(args.settings)[ORTHOGONAL.name] if args.settings else Point(1e-2, 0.8, 4.0)
    arms = changed(ORTHOGONAL.at(point), fused=args.problem == "gpt2")
    laboratory = Laboratory(problem, Journal(out / "runs.json"), args.jobs)
    seeds = range(TUNING_SEED, TUNING_SEED + args.seeds)
    plans = {arm.name: _runs(arm, point.lr, seeds, args.steps) for arm in arms}
    runs = laboratory.carry_out(plans, "parts", len(arms) * len(seeds) * args.steps)
    clocks = clock(problem, arms, point.lr, out, args.steps) if args.clock else {}
    note = f"Orthogonal at lr, β, r = {point}. Mean ± standard error over {len(seeds)} seeds of the tuning split; "
    note += "differences are taken seed by seed, * more than twice their standard error."
    title = f"{title_of(args.problem, problem)}, {args.steps} steps"
    report = f"### What each part is worth: {title}\n\n{table(runs, clocks, args.steps)}\n\n{note}\n"
    (out / "table.md").write_text(report)
    print(f"\n{report}")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=WIDTHS, default="news", help="what is learned (default news)")
    parser.add_argument("--width", type=int, help="of the model (default 128; vit: 64)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default 300)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0 on (default 3)")
    parser.add_argument("--settings", type=Path, help="chosen.json of the pretraining benchmark (default 1e-2, 0.8, 4)")
    parser.add_argument("--clock", action="store_true", help="time the steps too")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument("--threads", type=int, help="threads that torch uses here (default: its own choice)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-parts"), help="folder for runs and reports")
    return parser


def changed(full: Arm, fused: bool) -> list[Arm]:
    """The arm with all parts, and with each of them changed.

    Args:
        fused: the model has fused projections.
    """

    def renamed(name: str, **changes: Any) -> Arm:
        return dataclasses.replace(full, name=name, **changes)

    arms = [
        renamed(FULL),
        renamed("no curvature on hidden matrices", make=variant, knobs={**full.knobs, "structure": "flat"}),
        renamed("no graft on hidden matrices", make=fixed_length),
    ]
    if fused:
        arms.append(
            renamed("fused projections as one matrix", make=variant, knobs={**full.knobs, "structure": "whole"})
        )
    usual = {**AdaFisherConfig(structure="orthogonal").resolved().to_dict(), "vocabulary_lr": full.ratio}
    for option, values in OPTIONS.items():
        for value in values:
            change = {"ratio": value} if option == "vocabulary_lr" else {"knobs": {**full.knobs, option: value}}
            if value != usual[option]:
                arms.append(renamed(f"{option}={value}", **change))
    return arms


def clock(problem: Problem, arms: Sequence[Arm], lr: float, out: Path, steps: int) -> dict[str, Timing]:
    return time_arms(problem, arms, {arm.name: lr for arm in arms}, out / "timing.json", timed_steps(steps))


def table(runs: dict[str, list[Run]], clocks: dict[str, Timing], steps: int) -> str:
    """Markdown: a change a row."""
    losses = {name: [run.loss for run in some] for name, some in runs.items()}
    rows = []
    for name, some in losses.items():
        less = difference(some, losses[FULL])
        shown = "" if name == FULL else less.shown(signed=True) + (" *" if less.counts() else "")
        rows.append([name, estimate(some).shown(), shown, *_pace(clocks, name, steps)])
    header = ["change", f"tuning loss at {steps} steps", "less that of all parts", "time a step"]
    return markdown(header if clocks else header[:3], rows)


def _pace(clocks: dict[str, Timing], name: str, steps: int) -> list[str]:
    if not clocks:
        return []
    clock, full = clocks[name], clocks[FULL]
    return [f"× {clock.seconds(steps) / full.seconds(steps):.2f} ({clock.steady / full.steady:.2f})"]


def _runs(arm: Arm, lr: float, seeds: Sequence[int], steps: int) -> Plan[list[Run]]:
    return (yield [Job(arm, lr, seed, steps, "tune") for seed in seeds])


def _ratio(length: float, norm: Tensor) -> Tensor:
    return torch.where(norm > 0, length / norm, 0.0)


if __name__ == "__main__":
    with plain_errors():
        main()
