"""``lora="pair"``: A and B of an adapter take one step, of B A, that does not depend on how the product is split.

With P the diagonal curvature of B's outputs and Q that of A's inputs, ε = 0 and G the gradient of the product,
B dA + dB A is the projection of P⁻¹ G Q⁻¹ onto what an adapter can reach (in the metric P ⊗ Q), whichever N stands
between (B N⁻¹) and (N A). A step for each factor has no such property.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .base import Direction, Length
from .quotient import Quotient

LENGTH = 0.05  # of the product's step, in units of α √(m n): AdamW's learning rates for adapters are good for it
LEAST = 0.01  # of the other factor's Gram, for the damping of one that is still zero

Matrices = Sequence[Tensor]


@dataclass(frozen=True)
class PairFactor(Direction):
    """One factor's part of the step of a pair.

    Attributes:
        side: which factor.
        partner: what both have in common and no other pair has.
        curvature: P, (1, m, 1), or Q, (1, 1, n): relative to its mean, damped.
        damping: ε, relative to the mean diagonal of each r × r Gram.
        alone: what the factor does when its partner takes no step.
    """

    side: Literal["a", "b"]
    partner: object
    curvature: Tensor
    damping: float
    alone: Quotient
    follows: bool = False
    needs = "pair"
    own_length = True

    def apply(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        return self.alone.apply(momentum, out)

    @classmethod
    def apply_all(cls, directions: Sequence[Direction], momenta: Matrices, out: Matrices, weights: Matrices) -> None:
        couples, single = _couples(directions)
        for i in single:
            directions[i].apply(momenta[i], out=out[i])
        for group in _alike(couples, weights):
            parts = _Pairs.of([directions[i] for i, _ in group], [directions[j] for _, j in group])
            a, b = (torch.cat([weights[k].to(out[k].dtype) for k in side]) for side in zip(*group, strict=True))
            m_a, m_b = (torch.cat([momenta[k].to(out[k].dtype) for k in side]) for side in zip(*group, strict=True))
            for (i, j), step_a, step_b in zip(group, *pair_step(a, b, m_a, m_b, *parts), strict=True):
                out[i].copy_(step_a)
                out[j].copy_(step_b)

    @classmethod
    def lengths(
        cls, directions: Sequence[Direction], momenta: Matrices, out: Matrices, weights: Matrices
    ) -> list[Length | None]:
        found: list[Length | None] = [None] * len(directions)
        for i, j in _couples(directions)[0]:
            a, b, step_a, step_b = (x.to(out[i].dtype) for x in (weights[i], weights[j], out[i], out[j]))
            length = product_length(a, b, step_a, step_b)
            wanted = torch.full_like(length, LENGTH * (b.shape[-2] * a.shape[-1]) ** 0.5)
            for k in (i, j):
                found[k] = Length(wanted, length, momenta[k].to(length.dtype).square().mean().sqrt())
        return found

    def dense(self) -> Tensor:
        return self.alone.dense()

    def sample(self, size: int) -> Tensor:
        return self.alone.sample(size)

    def matrices(self, chosen: slice) -> Direction:
        return self.alone.matrices(chosen)


class _Pairs(NamedTuple):
    """What pairs of equal shape have beside weights and momenta: P, (pairs, m, 1), Q, (pairs, 1, n), and ε."""

    p: Tensor
    q: Tensor
    damping: float

    @classmethod
    def of(cls, a: Sequence[Direction], b: Sequence[Direction]) -> _Pairs:
        return cls(torch.cat([x.curvature for x in b]), torch.cat([x.curvature for x in a]), a[0].damping)  # type: ignore[attr-defined]


def factor(side: Literal["a", "b"], partner: object, quotient: Quotient, damping: float, tau: float) -> PairFactor:
    """The part of a factor, from the diagonal curvature that it has by itself.

    Args:
        side: which it is.
        partner: the same object for both.
        quotient: momentum / F̂ of the factor, F̂ of one owner and one matrix.
        damping: ε.
        tau: τ, in units of the mean of P or Q.
    """
    diagonal = quotient.cols[0] if side == "a" else quotient.rows[0]
    mean = diagonal.mean()
    relative = torch.where(mean > 0, diagonal / mean, 1.0) + tau
    shaped = relative.unsqueeze(-2 if side == "a" else -1)
    return PairFactor(side, partner, shaped, damping, quotient, follows=side == "b")


def pair_step(
    a: Tensor, b: Tensor, m_a: Tensor, m_b: Tensor, p: Tensor, q: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """dA and dB::

        dA = (BᵀPB + ε)⁻¹ m_A Q⁻¹ (I - ½ Q Aᵀ (A Q Aᵀ + ε)⁻¹ A)
        dB = (I - ½ B (BᵀPB + ε)⁻¹ Bᵀ P) P⁻¹ m_B (A Q Aᵀ + ε)⁻¹

    Args:
        a: A, (pairs, r, n); m_a: its momentum.
        b: B, (pairs, m, r); m_b: its momentum.
        p: P, (pairs, m, 1).
        q: Q, (pairs, 1, n).
        damping: ε.
    """
    inverse_a, inverse_b = damped_inverses((a * q) @ a.mT, b.mT @ (p * b), p.sum((1, 2)) / q.sum((1, 2)), damping)
    step_a = inverse_b @ (m_a / q - 0.5 * (m_a @ a.mT) @ (inverse_a @ a))
    step_b = (m_b / p - 0.5 * (b @ (inverse_b @ (b.mT @ m_b)))) @ inverse_a
    return step_a, step_b


def damped_inverses(gram_a: Tensor, gram_b: Tensor, ratio: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(A Q Aᵀ + ε_A)⁻¹ and (BᵀPB + ε_B)⁻¹, (pairs, r, r).

    ε is relative to the mean of the diagonal, of a Gram that is still zero to a hundredth of the other one's.

    Args:
        ratio: ΣP / ΣQ, (pairs,): how the Grams of equally large factors compare.
    """
    mean_a, mean_b = (gram.diagonal(dim1=-2, dim2=-1).mean(-1) for gram in (gram_a, gram_b))
    damping_a = damping * torch.maximum(mean_a, LEAST * mean_b / ratio)
    damping_b = damping * torch.maximum(mean_b, LEAST * mean_a * ratio)
    return _inverse(gram_a, damping_a), _inverse(gram_b, damping_b)


def product_length(a: Tensor, b: Tensor, step_a: Tensor, step_b: Tensor) -> Tensor:
    """‖B dA + dB A‖_F by products of r × r; shape ()."""
    squares = (b.mT @ b) * (step_a @ step_a.mT) + (step_b.mT @ step_b) * (a @ a.mT)
    mixed = (b.mT @ step_b) * (step_a @ a.mT)
    return (squares.sum() + 2 * mixed.sum()).clamp(min=0).sqrt()


def _inverse(gram: Tensor, damping: Tensor) -> Tensor:
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # Without a look at whether it worked, which would wait for the device: what is not finite falls back later.
    return torch.linalg.inv_ex(gram + damping[:, None, None] * eye)[0]


def _couples(directions: Sequence[Direction]) -> tuple[list[tuple[int, int]], list[int]]:
    """The places of A and B of each pair, and of those whose partner is not there."""
    places = {(id(d.partner), d.side): i for i, d in enumerate(directions) if isinstance(d, PairFactor)}
    couples = [(i, places[key, "b"]) for (key, side), i in places.items() if side == "a" and (key, "b") in places]
    paired = {i for couple in couples for i in couple}
    return couples, [i for i in range(len(directions)) if i not in paired]


def _alike(couples: list[tuple[int, int]], weights: Matrices) -> list[list[tuple[int, int]]]:
    groups: dict[tuple, list[tuple[int, int]]] = {}
    for i, j in couples:
        groups.setdefault((weights[i].shape, weights[j].shape, weights[i].device), []).append((i, j))
    return list(groups.values())
