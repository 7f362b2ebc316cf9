"""Small results of the papers behind the family, repeated: SIRFShampoo on digits, AdamQLR untuned beside tuned Adam.

    python examples/benchmarks/family_papers.py

digits      SIRFShampoo's first example: a small convolutional net, 200 steps of 32 digits, everything at its default.
            Here the digits are scikit-learn's, 8 × 8 pixels, not MNIST. Beside the authors' package, and AdamW.
rosenbrock  AdamQLR's: 200 steps from (1, -1), a = 1 and b = 100, beside Adam with the best rate of a grid.
regression  AdamQLR's: a net of 50 hidden units, all data in one batch, inputs and outputs normalised. Here the data are
            Friedman's first function and scikit-learn's diabetes, in place of UCI Energy. Untuned (as its authors have
            it: α is 0.1 at most) beside Adam with as much processor time, at its default rate, and at the best of a
            grid by the training loss and by that on a validation part; the time of the grid comes on top.

Takes less than two minutes of one core. Needs the package sirfshampoo. The numbers are kept in --out.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes, make_friedman1
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdamQLR, SIRFShampoo
from data.digits import load_digits
from data.limits import LimitArguments
from tables import markdown

Build = Callable[[nn.Module], torch.optim.Optimizer]
Data = Callable[[], Any]  # inputs and outputs
Found = dict[str, dict[str, float]]  # by arm and by what is measured

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
DEFAULT_RATE = 1e-3  # of Adam
UNTUNED: dict[str, Any] = {"lr_clip": 0.1}  # AdamQLR in its authors' code
HELD_OUT = 0.15  # for validation, and as much for the test
BATCH, DIGIT_STEPS, ROSENBROCK_STEPS = 32, 200, 200


DATA: dict[str, Data] = {
    "Friedman": lambda: make_friedman1(768, noise=1.0, random_state=0),  # as many rows as UCI Energy
    "diabetes": lambda: load_diabetes(return_X_y=True),
}


def adam(lr: float) -> Build:
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr)


# Digits ---------------------------------------------------------------------------------------------------------------


def digits(seeds: Sequence[int]) -> Found:
    """Accuracy on the digits that were not trained on, and the loss of the last 25 steps."""
    arms: dict[str, Build] = {
        "SIRFShampoo": lambda model: SIRFShampoo(model, batch_size=BATCH),
        "SIRFShampoo, diagonal": lambda model: SIRFShampoo(model, batch_size=BATCH, structure="diagonal"),
        "AdamW": lambda model: torch.optim.AdamW(model.parameters()),
    }
    found = {name: _mean([recognise(build, seed)[1] for seed in seeds]) for name, build in arms.items()}
    return {**found, "the authors' package": {"weights differ by up to": _difference_from_package(arms["SIRFShampoo"])}}


def recognise(build: Build, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """Trains on digits, in float64."""
    torch.manual_seed(seed)
    shapes = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 50), nn.ReLU(), nn.Linear(50, 10)
    model = nn.Sequential(*shapes).double()
    (x, y), (test_x, test_y) = _digits()
    optimizer, losses = build(model), []
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + BATCH * DIGIT_STEPS // len(x))])
    for batch in order[: BATCH * DIGIT_STEPS].split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).double().mean().item()
    return model, {"accuracy, %": 100 * accuracy, "training loss": statistics.mean(losses[-25:])}


@functools.cache
def _digits() -> list[tuple[Tensor, Tensor]]:
    """Pixels and labels, of training and evaluation."""
    return [(rows["pixel_values"][:].double(), rows["labels"][:]) for rows in load_digits(LimitArguments())]


def _difference_from_package(ours: Build) -> float:
    from sirfshampoo import SIRFShampoo as Published

    nets = [recognise(build, 0)[0] for build in (ours, lambda model: Published(model, batch_size=BATCH))]
    pairs = zip(*(net.parameters() for net in nets), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


# Rosenbrock -----------------------------------------------------------------------------------------------------------


class Rosenbrock(nn.Module):
    """(1 - x)² + 100 (y - x²)², a sum of two squares, so that its Gauss-Newton matrix is known."""

    def __init__(self) -> None:
        super().__init__()
        self.xy = nn.Parameter(torch.tensor([1.0, -1.0]).double())

    def forward(self) -> Tensor:
        x, y = self.xy
        residuals = torch.stack([1 - x, 10 * (y - x**2)])
        return F.mse_loss(residuals, torch.zeros_like(residuals), reduction="sum")


def rosenbrock() -> Found:
    """The value after the last step, and after half of them."""

    def descend(build: Build) -> dict[str, float]:
        model = Rosenbrock()
        optimizer, values = build(model), []
        for _ in range(ROSENBROCK_STEPS):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
            values.append(model().item())
        return {"value at the end": values[-1], "half way": values[ROSENBROCK_STEPS // 2 - 1]}

    tried = {lr: descend(adam(lr)) for lr in RATES}
    best = min(tried, key=lambda lr: tried[lr]["value at the end"])
    return {
        "AdamQLR, untuned": descend(lambda model: AdamQLR(model, **UNTUNED)),
        "AdamQLR, α as large as it likes": descend(AdamQLR),
        f"Adam, lr {best:g} (the best of {len(RATES)})": tried[best],
        f"Adam, lr {DEFAULT_RATE:g}": tried[DEFAULT_RATE],
    }


# Regression -----------------------------------------------------------------------------------------------------------


def regression(data: Data, seeds: Sequence[int], steps: int) -> Found:
    """Losses after as much processor time as AdamQLR takes for its steps; Adam's rate is chosen with the first seed."""

    def learn(build: Build, seed: int, **until: float) -> dict[str, float]:
        return fit(data, build, seed, **until)

    tuning, *others = seeds
    budget = learn(lambda model: AdamQLR(model, **UNTUNED), tuning, steps=steps)["seconds"]
    tried = {lr: learn(adam(lr), tuning, seconds=budget) for lr in RATES}
    arms: dict[str, Build] = {
        "AdamQLR, untuned": lambda model: AdamQLR(model, **UNTUNED),
        "AdamQLR, α as large as it likes": AdamQLR,
        f"Adam, lr {DEFAULT_RATE:g}": adam(DEFAULT_RATE),
    }
    for measure in ("training loss", "validation loss"):
        best = min(tried, key=lambda lr: tried[lr][measure])
        arms[f"Adam, lr {best:g} (best {measure} of {len(RATES)})"] = adam(best)
    return {name: _mean([learn(build, seed, seconds=budget) for seed in others]) for name, build in arms.items()}


def fit(
    data: Data, build: Build, seed: int, steps: float | None = None, seconds: float | None = None
) -> dict[str, float]:
    """Trains for so many steps or so much processor time, of which steps alone count."""
    torch.manual_seed(seed)
    x, y = (_normalised(torch.tensor(array)) for array in data())
    held_out = round(HELD_OUT * len(x))
    train, validation, test = torch.randperm(len(x)).split([len(x) - 2 * held_out, held_out, held_out])
    model = nn.Sequential(nn.Linear(x.shape[1], 50), nn.ReLU(), nn.Linear(50, 1), nn.Flatten(0)).double()
    optimizer, used, taken = build(model), 0.0, 0
    step: Any = optimizer.step

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x[train]), y[train])
        loss.backward()
        return loss

    while taken != steps and (seconds is None or used < seconds):
        start = time.process_time()
        step(closure)
        used, taken = used + time.process_time() - start, taken + 1
    with torch.no_grad():
        losses = [F.mse_loss(model(x[part]), y[part]).item() for part in (train, validation, test)]
    names = "training loss", "validation loss", "test loss"
    return {**dict(zip(names, losses, strict=True)), "steps": taken, "seconds": used}


def _normalised(array: Tensor) -> Tensor:
    return (array - array.mean(0)) / array.std(0)


# All of it ------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    seeds = range(args.seeds)
    found = {
        "digits": digits(seeds),
        "rosenbrock": rosenbrock(),
        **{f"regression, {name}": regression(data, range(args.seeds + 1), args.steps) for name, data in DATA.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"seeds": args.seeds, "steps": args.steps, "results": found}, indent=1) + "\n")
    for title, arms in found.items():
        print(f"### {title}\n\n{table(arms)}\n")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs that are averaged (default 5)")
    parser.add_argument("--steps", type=int, default=500, help="of AdamQLR in a regression (default 500)")
    parser.add_argument("--out", type=Path, default=Path("docs/family/papers.json"), help="file for the numbers")
    return parser


def table(arms: Found) -> str:
    """Markdown: an arm a row."""
    measures = list(dict.fromkeys(name for numbers in arms.values() for name in numbers))
    rows = [
        [arm, *(f"{numbers[name]:.3g}" if name in numbers else "" for name in measures)]
        for arm, numbers in arms.items()
    ]
    return markdown(["", *measures], rows)


def _mean(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
