"""Does the lead stay as the model grows? The pretraining task at several widths, on the same tokens.

    python examples/benchmarks/scale.py --settings runs/bench-pretrain/news-128-300/chosen.json --jobs 2

Every arm starts at what the pretraining benchmark set it to and tunes its learning rate at every width; seeds, splits
and schedule are that benchmark's. The picture is of the loss against the number of parameters, and nothing is fitted to
so few points. Finished runs are kept in OUT/WIDTH/runs.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.catalogue import TITLES, make_problem, parameters_of
from benchmarks.harness.contest import Contest, read_points
from benchmarks.harness.contestants import ADAMW, ARMS, MUON, NORMUON, ORTHOGONAL
from benchmarks.harness.rankings import Standings, quality_table, tuning_table
from benchmarks.harness.standing import estimate
from data.text import show_progress
from errors import plain_errors
from plotting import LIGHT, color_of, new_figure, save

RIVALS = (ADAMW.name, MUON.name)
COMPARED = (ADAMW.name, MUON.name, NORMUON.name, ORTHOGONAL.name)
PROBLEMS = ("news", "python", "gpt2")


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_flush_denormal(True)  # a rate that saturates a network would halve the pace of its CPU kernels
    show_progress(False)
    starts = read_points(args.settings) if args.settings else None
    arms = [arm for arm in ARMS if arm.name in args.arms]
    sizes: dict[int, Standings] = {}
    parts = []
    for width in args.widths:
        problem, out = make_problem(args.problem, width), args.out / f"{args.problem}-{width}-{args.steps}"
        contest = Contest(
            problem,
            arms,
            RIVALS,
            args.steps,
            args.seeds,
            out,
            starts=starts,
            coordinates=("lr",),
            processes=args.jobs,
        )
        size = parameters_of(problem)
        sizes[size] = contest.measure("equal")
        tables = (quality_table(sizes[size], *RIVALS, args.steps), tuning_table(sizes[size]))
        parts.append(
            f"### {TITLES[args.problem]}, width {width}, {size / 1e6:.1f} M parameters\n\n" + "\n\n".join(tables)
        )
        (args.out / "table.md").write_text("\n\n".join(parts) + "\n")
    draw(sizes, args.out / "scale.svg", f"{TITLES[args.problem]}, {args.steps} steps")
    print("\n" + "\n\n".join(parts))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [arm.name for arm in ARMS]
    parser.add_argument("--problem", choices=PROBLEMS, default="news", help="what is learned (default news)")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512], help="of the models")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of a run (default 150)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the final runs (default 3)")
    parser.add_argument("--arms", nargs="+", choices=names, default=COMPARED, metavar="ARM", help=", ".join(names))
    parser.add_argument("--settings", type=Path, help="chosen.json of the pretraining benchmark")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-scale"), help="folder for runs and reports")
    return parser


def draw(sizes: Mapping[int, Standings], path: Path, title: str) -> None:
    """Loss against parameters, with the standard error of the mean."""
    figure, axes = new_figure(title)
    names = dict.fromkeys(name for standings in sizes.values() for name in standings)
    for index, name in enumerate(names):
        estimates = {
            size: estimate([run.loss for run in standings[name].finals])
            for size, standings in sizes.items()
            if name in standings
        }
        means, errors = zip(*estimates.values(), strict=True)
        color = color_of(name, LIGHT, index)
        axes.errorbar([*estimates], means, yerr=errors, color=color, marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="parameters")
    save(figure, axes, path)


if __name__ == "__main__":
    with plain_errors():
        main()
