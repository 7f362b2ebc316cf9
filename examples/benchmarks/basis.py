"""What a new eigenbasis costs: torch's eigh, or a QR power step from the last basis; and the products that feed it.

    python examples/benchmarks/basis.py

A power step takes the Q of QR(F Q_old), columns by falling eigenvalue: a basis that follows a slowly turning factor F.
Both are timed on batches of factors of one size, as the optimizer makes them, and both are judged by how much of F they
leave off the diagonal after F has turned by one refresh's share (γ = 0.8). The products Σ hhᵀ are timed in float32 and
in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from tables import markdown

BATCH = 4  # factors
TOKENS = 2048
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="sides of the factors")
    args = parser.parse_args(argv)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {REPEATS}\n")
    times = ["ms, d =", "eigh", "QR step", "Σhhᵀ in float32", "in bfloat16"]
    left = ["off the diagonal, d =", "the old basis", "eigh", "QR step"]
    measured = {size: _measure(size) for size in args.sizes}
    print(markdown(times, [[str(size), *(f"{value:.1f}" for value in found[0])] for size, found in measured.items()]))
    print()
    print(markdown(left, [[str(size), *(f"{value:.1%}" for value in found[1])] for size, found in measured.items()]))


def _measure(size: int) -> tuple[list[float], list[float]]:
    """Milliseconds, and shares of a factor that are off the diagonal."""
    torch.manual_seed(0)
    scales = torch.logspace(0, -3, size)
    rows = [torch.randn(BATCH, TOKENS, size) * scales for _ in range(2)]
    turn = torch.linalg.qr(torch.randn(BATCH, size, size))[0]
    before = rows[0].mT @ rows[0]
    after = 0.8 * before + 0.2 * (turn.mT @ (rows[1].mT @ rows[1]) @ turn)
    old = torch.linalg.eigh(before)[1].flip(-1)

    def power_step() -> Tensor:
        return torch.linalg.qr(after @ old)[0]

    half = rows[0].bfloat16()
    times = [
        _milliseconds(lambda: torch.linalg.eigh(after)),
        _milliseconds(power_step),
        _milliseconds(lambda: rows[0].mT @ rows[0]),
        _milliseconds(lambda: half.mT @ half),
    ]
    return times, [_off_diagonal(after, basis) for basis in (old, torch.linalg.eigh(after)[1], power_step())]


def _off_diagonal(factor: Tensor, basis: Tensor) -> float:
    """The share of the factor's norm that is off the diagonal in a basis."""
    rotated = basis.mT @ factor @ basis
    diagonal = torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    return float((rotated - diagonal).norm() / rotated.norm())


def _milliseconds(work: Callable[[], object]) -> float:
    work()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
