"""Deliberate mistakes in statistics/, preconditioners/ and update/, one at a time: the tests have to see each of them.

    python tests/mutants.py            # or: make mutants
    python tests/mutants.py graft      # those whose description has the word

Each is a line that is changed in a copy of the package. A mistake that no test sees is printed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = [  # the quickest first: most mistakes are seen there
    "tests/preconditioners",
    "tests/test_extremes.py",
    "tests/statistics/test_choice.py",
    "tests/statistics/test_exact.py",
    "tests/statistics/test_shared_inputs.py",
    "tests/test_late_changes.py",
    "tests/test_precision.py",
    "tests/test_corner_cases.py",
    "tests/test_invariance.py",
    "tests/insight",
    "tests/test_reference.py",
    "tests/layers",
    "tests/statistics",
    "tests/test_recomputation.py",
]
TO_BE_CAUGHT = 0.95


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    what: str


S, P, U = "statistics/", "preconditioners/", "update/"
MUTANTS = [
    # The six that a review found alive.
    Mutant(P + "diagonal.py", "- sums.tokens.log()", "", "tied weights: a use is not divided by its tokens"),
    Mutant(P + "kronecker.py", "for k in range(owners):", "for k in range(1):", "pooled basis of the first owner only"),
    Mutant(S + "tap.py", " and self.version == version_of(x)", "", "version of the last input is not looked at"),
    Mutant("layers/embedding.py", "as_tokens(grad_output) * scale", "as_tokens(grad_output)", "embed_scale ignored"),
    Mutant(S + "tap.py", "self.gate.inverse_scale() ** 2", "self.gate.inverse_scale()", "loss scale not squared"),
    Mutant("optimizer.py", "        self._directions.forget(self._statistics)\n", "", "directions survive a load"),
    # statistics/
    Mutant(S + "tap.py", "if self.retired or not", "if not", "retired taps measure"),
    Mutant(S + "tap.py", "value if self.sums is None else getattr(self.sums, name) + value", "value", "last call only"),
    Mutant(S + "tap.py", "torch.where(finite, value, torch.zeros_like(value))", "value", "non-finite sums enter"),
    Mutant(S + "tap.py", "* choice.stride", "", "chosen tokens stand for themselves alone"),
    Mutant(S + "tap.py", "weights * (inputs.ids != module.padding_idx)", "weights", "padding_idx is counted"),
    Mutant(S + "tap.py", "(self.kind.name, self.kind.input_key(module),", "(self.kind.name,", "shared inputs: key too short"),
    Mutant(S + "sums.py", "(x * weights.to(x.dtype).unsqueeze(-1)).mT @ x", "x.mT @ x", "dense: padding is counted"),
    Mutant(S + "sums.py", "return weights @ tokens.to(weights.dtype).square()", "return weights @ tokens.to(weights.dtype).abs()", "|x|"),
    Mutant(S + "sums.py", ".index_add_(1, tokens.ids, weights.unsqueeze(0))", ".index_add_(1, tokens.ids, torch.ones_like(weights).unsqueeze(0))", "embedding: padding is counted"),
    Mutant(S + "choice.py", "self.start :: self.stride].flatten(1, 3)", ":: self.stride].flatten(1, 3)", "choice does not move"),
    Mutant(S + "counts.py", "tap.expected = int(count) or None", "pass", "token counts are not restored"),
    Mutant(S + "gradient.py", "layout.col: grad.mT @ grad if", "layout.col: grad.mT @ grad.abs() if", "fallback: wrong moment"),
    Mutant(S + "gradient.py", "tokens = totals if layout.independent else squared.sum()", "tokens = totals", "fallback: tokens a matrix"),
    Mutant(S + "experts.py", "chosen, order = torch.sort(top_k_index.reshape(-1))", "chosen, order = torch.sort(top_k_index.reshape(-1), stable=True, descending=False); order = order.flip(0)", "experts: order"),
    Mutant(S + "experts.py", "new_zeros(self.stack).index_add_(0, picked.experts, picked.weights)", "new_full((self.stack,), float(len(picked.experts)))", "experts: all tokens for each"),
    Mutant(S + "model.py", "        for tap in taps.values():\n            tap.take()\n", "        pass\n", "discarded passes are counted"),
    Mutant(S + "model.py", "if any(use.sums is not None for use in uses):", "if all(use.sums is not None for use in uses):", "a silent owner: gradient instead"),
    Mutant(S + "hooks.py", "return None if self.retired else", "return", "copied hooks run"),
    # preconditioners/
    Mutant(P + "diagonal.py", "* (1 - gamma)", "* gamma", "γ and 1 - γ"),
    Mutant(P + "diagonal.py", "        row, col = row / _like(row_mean, row), col / _like(col_mean, col)\n", "", "sides are not normalised"),
    Mutant(P + "diagonal.py", "row, mean = row / _like(rest, row), mean + rest.log()", "pass", "groups: no rest"),
    Mutant(P + "diagonal.py", "* _like(share, use.row)", "", "tied: every share is 1"),
    Mutant(P + "diagonal.py", "torch.where(_like(known, average), new, average)", "new", "unknown statistics enter"),
    Mutant(P + "diagonal.py", "torch.where(known, torch.full_like(total, damping), 1.0)", "torch.full_like(total, damping)", "no curvature: F̂ = τ"),
    Mutant(P + "diagonal.py", "weight.lerp_(torch.ones_like(weight), gain)", "weight.fill_(1.0)", "no bias correction"),
    Mutant(P + "diagonal.py", "sums.input / sums.tokens * sums.output", "sums.input * sums.output", "norms: not divided by tokens"),
    Mutant(P + "kronecker.py", "factor = (basis * (factor @ basis)).sum(-2)", "factor = factor.diagonal(dim1=-2, dim2=-1)", "not the curvature of the basis"),
    Mutant(P + "kronecker.py", "x if self.cols is None else x @ self.cols.mT", "x if self.cols is None else x @ self.cols", "rotated back the wrong way"),
    Mutant(P + "kronecker.py", "usable = torch.isfinite(new).all((1, 2), keepdim=True)", "usable = torch.ones_like(new, dtype=torch.bool)", "failed bases are taken"),
    Mutant(P + "kronecker.py", 'state["rotated_sq"].copy_(moved)', "pass", "second moment is not carried over"),
    Mutant(P + "kronecker.py", "valid = is_normal(rms)", "valid = rms == rms", "rotated: any gradient enters"),
    Mutant(P + "quotient.py", "return out.add_(self.damping)", "return out", "no damping"),
    Mutant(P + "quotient.py", "out.addcmul_(row, col)", "out.add_(0.0)", "second owner is not divided by"),
    Mutant(P + "base.py", "torch.where(b >= torch.finfo(b.dtype).tiny, a / b, 0.0)", "a / b", "0 / 0"),
    Mutant(P + "paper.py", "tokens.clamp(min=1.0)", "1.0", "paper: sums instead of means"),
    Mutant(P + "reference.py", "0.01 * gamma", "0.1 * gamma", "reference: another constant"),
    # update/
    Mutant(U + "scalars.py", "sqrt(), floor)", "sqrt(), 0 * floor)", "no floor of σ"),
    Mutant(U + "scalars.py", "momentum / quotient / scalars.sigma", "1 / scalars.sigma", "no graft"),
    Mutant(U + "scalars.py", "torch.where(torch.isfinite(graft), graft, 0.0)", "graft", "0 / 0 reaches the weights"),
    Mutant(U + "scalars.py", "new = torch.where(finite, old.lerp(mean_sq, 1 - hyper.beta2), old)", "new = old.lerp(mean_sq, 1 - hyper.beta2)", "σ takes what is not finite"),
    Mutant(U + "scalars.py", "steps = torch.stack(batch.steps) + finite", "steps = torch.stack(batch.steps) + 1", "counts steps not taken"),
    Mutant(U + "scalars.py", "1 - hyper.beta**seen)", "1 - 0 * seen)", "no bias correction of m"),
    Mutant(U + "scalars.py", "factor * quotient, 0.0))", "factor * momentum, 0.0))", "length is not that of the update"),
    Mutant(U + "foreach.py", "torch.where(ok, grad, exp_avg)", "grad", "bad gradients enter the momentum"),
    Mutant(U + "foreach.py", "if hyper.weight_decay and not hyper.decoupled:", "if hyper.weight_decay:", "decay twice"),
    Mutant(U + "foreach.py", "scale.decay * hyper.weight_decay * hyper.lr", "scale.decay * hyper.weight_decay", "decay without α"),
    Mutant(U + "foreach.py", "hyper.weight_decay * scalars.sigma, 0.0", "hyper.weight_decay, 0.0", "coupled decay without σ"),
    Mutant(U + "rounding.py", "compensation.copy_(exact.sub_(param))", "pass", "Kahan without compensation"),
    Mutant(U + "rounding.py", "torch.where(resting, param.to(exact.dtype), exact)", "exact", "resting weights are rounded"),
    Mutant(U + "directions.py", "kept.damping != damping", "False", "damping of a group is kept"),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose file or description has one of these")
    words = parser.parse_args().words
    chosen = [m for m in MUTANTS if not words or any(word in m.file + m.what for word in words)]
    if fails():
        raise SystemExit("the tests fail without any mistake: mend that first")
    alive = []
    for i, mutant in enumerate(chosen, 1):
        caught = fails(mutant)
        alive += [] if caught else [mutant]
        print(f"{i:3}/{len(chosen)}  {'caught' if caught else 'ALIVE '}  {mutant.file}: {mutant.what}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} caught")
    return int(len(chosen) - len(alive) < TO_BE_CAUGHT * len(chosen))


def fails(mutant: Mutant | None = None) -> bool:
    """Whether a test fails with the mistake in a copy of the package."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "adafisher_hf"
        shutil.copytree(ROOT / "src/adafisher_hf", package, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = package / mutant.file
            source = file.read_text()
            if mutant.old not in source:
                raise SystemExit(f"{mutant.file} has no {mutant.old!r} any more: mend the list in tests/mutants.py")
            file.write_text(source.replace(mutant.old, mutant.new))
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
