"""How near the empirical, the improved and the sampled Fisher lead to the natural gradient (Wu et al. 2024).

    python examples/benchmarks/fisher_estimators.py --out docs/estimators

Draws where each goes on a least-squares problem of two samples, and prints γ of their directions on a small LoRA:
γ(Δ) = √(ΔᵀFΔ) / |Δᵀg| with the exact Fisher F of the model's predictions and the gradient g. The natural gradient has
the smallest γ that there is; numbers are relative to it, so 1 is the best. Takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from benchmarks.harness.materials.vision import mnist
from data.text import show_progress
from errors import plain_errors
from tables import markdown

ESTIMATORS = ("empirical", "improved", "sampled")
SAMPLES, DAMPING = 96, 1e-4  # of the directions in matrix form: λ relative to the mean diagonal of JJᵀ
TRAINED = (0, 50, 200)  # steps of AdamW before the directions are compared

X = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)  # of the two samples; the targets are 0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/estimators"), help="folder for picture and table")
    args = parser.parse_args(argv)
    show_progress(False)
    args.out.mkdir(parents=True, exist_ok=True)
    draw_two_samples(args.out / "two_samples.png")
    table = gamma_table()
    (args.out / "table.md").write_text(f"{table}\n")
    print(table)


# Two samples ----------------------------------------------------------------------------------------------------------


def draw_two_samples(path: Path) -> None:
    """Where small steps along each direction lead from a few starts, over the contours of the loss."""
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = figure.subplots()
    reach = np.linspace(-2.2, 2.2, 121)
    grid = torch.tensor(np.stack(np.meshgrid(reach, reach), -1))
    loss = (grid @ X.T).square().sum(-1)
    axes.contour(reach, reach, loss, levels=12, colors="0.8", linewidths=0.8)
    colors = {"empirical": "#d62728", "improved": "#1f77b4", "gradient": "#2ca02c", "natural gradient": "black"}
    for name, color in colors.items():
        for start in ((-2.0, 1.0), (1.6, 1.2), (0.4, -2.0)):
            points = trajectory(name, torch.tensor(start, dtype=torch.float64))
            style = "--" if name == "natural gradient" else "-"
            axes.plot(*points.T, style, color=color, label=name if start[0] == -2.0 else None, lw=1.8)
    axes.set(xlabel="θ₁", ylabel="θ₂", title="Two samples, least squares: small steps to the solution at 0")
    axes.legend()
    figure.savefig(path, dpi=110)


def trajectory(name: str, theta: Tensor, steps: int = 400, length: float = 0.02) -> Tensor:
    points = [theta]
    for _ in range(steps):
        step = direction(name, theta)
        if (X @ theta).square().sum() < 1e-3:
            break
        theta = theta + length * step / step.norm()
        points.append(theta)
    return torch.stack(points)


def direction(name: str, theta: Tensor) -> Tensor:
    """Δ = -Jᵀ(JJᵀ + λ)⁻¹ s with a row of J the gradient of one sample's loss."""
    residual = X @ theta
    rows = residual[:, None] * X
    if name == "natural gradient":  # F = XᵀX
        return -torch.linalg.solve(X.T @ X, rows.sum(0))
    return -rows.sum(0) if name == "gradient" else in_matrix_form(rows, weights(name, residual[:, None]))


def weights(name: str, logits_grad: Tensor) -> Tensor:
    """s: 1 of every sample, or ‖∂ℓ/∂z‖²."""
    return logits_grad.square().sum(-1) if name == "improved" else torch.ones(len(logits_grad), dtype=logits_grad.dtype)


def in_matrix_form(rows: Tensor, s: Tensor) -> Tensor:
    gram = rows @ rows.T
    damping = DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return -rows.T @ torch.linalg.solve(gram + damping, s)


# A small LoRA ---------------------------------------------------------------------------------------------------------


def gamma_table() -> str:
    """Markdown: γ relative to the natural gradient's, a direction a row, after some training a column."""
    material = mnist(hidden_size=32, lora_r=2)
    torch.manual_seed(0)
    model = material.make_model().eval()
    batch = material.collate([material.splits["train"][i] for i in range(SAMPLES)])
    columns: list[Mapping[str, float]] = []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(TRAINED[-1] + 1):
        if step in TRAINED:
            columns.append(gammas(model, batch))
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    rows = [[name, *(f"{column[name]:.2f}" for column in columns)] for name in columns[0]]
    return markdown(["γ, relative to the natural gradient's", *(f"after {steps} steps" for steps in TRAINED)], rows)


def gammas(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """By direction: the gradient, those in matrix form, and those of the optimizer's diagonal structure."""
    local = LocalModel(model, batch)
    found = {"gradient": -local.gradient}
    torch.manual_seed(0)
    drawn = torch.distributions.Categorical(logits=local.logits).sample()
    for name in ESTIMATORS:
        labels = drawn if name == "sampled" else batch["labels"]
        rows, logits_grads = local.rows(labels)
        found[f"{name}, all of JᵀJ"] = local.solved(rows, weights(name, logits_grads), name == "sampled")
    for name in ESTIMATORS:
        found[f"{name}, structure=diagonal"] = local.of_optimizer(name)
    best = local.gamma(local.natural())
    return {name: local.gamma(step) / best for name, step in found.items()}


class LocalModel:
    """A model where it stands, as a function of its trained parameters, with a batch. All in float64."""

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor]):
        self.model = model
        self.images, self.labels = batch["pixel_values"].double(), batch["labels"]
        self.fixed = {name: value.detach().double() for name, value in model.state_dict().items()}
        self.trained = {name: p.detach().double() for name, p in model.named_parameters() if p.requires_grad}
        self.logits = self._logits(self.trained, self.images)
        rows, _ = self.rows(self.labels)
        self.gradient = rows.mean(0)

    def rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """J, the gradient of each sample's loss, (samples, parameters), and p - y, (samples, classes)."""

        def loss(trained: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self._logits(trained, image[None]), label[None])

        found = vmap(grad(loss), in_dims=(None, 0, 0))(self.trained, self.images, labels)
        errors = self.logits.softmax(-1) - nn.functional.one_hot(labels, self.logits.shape[-1])
        return torch.cat([part.flatten(1) for part in found.values()], 1), errors

    def solved(self, rows: Tensor, s: Tensor, for_gradient: bool) -> Tensor:
        """Δ in matrix form; of sampled labels F̂⁻¹ g, with g the gradient of the true ones."""
        if not for_gradient:
            return in_matrix_form(rows, s)
        gram = rows @ rows.T
        damping = DAMPING * gram.diagonal().mean()
        inner = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), rows @ self.gradient)
        return -(self.gradient - rows.T @ inner) / damping  # by Woodbury

    def natural(self) -> Tensor:
        """-(F + λ)⁻¹ g, with F from the Jacobian of every logit."""
        roots = self.logits.softmax(-1).sqrt()
        rows = [self.rows(torch.full_like(self.labels, label))[0] for label in range(self.logits.shape[-1])]
        # Σ_c p_c g_c g_cᵀ over the gradients g_c of all labels is the Fisher.
        stacked = torch.cat([roots[:, label, None] * row for label, row in enumerate(rows)]) / len(self.labels) ** 0.5
        gram = stacked @ stacked.T
        damping = DAMPING * gram.diagonal().mean()
        inner = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), stacked @ self.gradient)
        return -(self.gradient - stacked.T @ inner) / damping

    def of_optimizer(self, estimator: str) -> Tensor:
        """-g / F̂ with the curvature that the optimizer measures in one step."""
        optimizer = AdaFisherW(self.model, lr=0.0, estimator=estimator)
        self.model.zero_grad()
        self.model(pixel_values=self.images.float(), labels=self.labels).loss.backward()
        optimizer.step()
        parameters = dict(self.model.named_parameters())
        divisors = [optimizer.curvature(parameters[name]).double().flatten() for name in self.trained]
        optimizer.close()
        return -self.gradient / torch.cat(divisors)

    def gamma(self, step: Tensor) -> float:
        """√(ΔᵀFΔ) / |Δᵀg|, by one forward-mode product."""
        sizes = [value.numel() for value in self.trained.values()]
        parts = zip(self.trained.items(), step.split(sizes), strict=True)
        tangents = {name: part.view_as(value) for (name, value), part in parts}
        moved: Tensor = jvp(lambda trained: self._logits(trained, self.images), (self.trained,), (tangents,))[1]
        p = self.logits.softmax(-1)
        squared = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
        return float(squared.mean().sqrt() / (step @ self.gradient).abs())

    def _logits(self, trained: dict[str, Tensor], images: Tensor) -> Any:
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return functional_call(self.model, {**self.fixed, **trained}, (images,)).logits


if __name__ == "__main__":
    with plain_errors():
        main()
