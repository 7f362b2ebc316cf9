"""The arms of the benchmarks that train from scratch, with what is tuned of each."""

from __future__ import annotations

from typing import Any

from .arms import BETA2, Arm, Point, adafactor, adafisherw, adamw, muon, normuon, soap, soap_muon

BETAS = (0.7, 0.8, 0.9, 0.95)
PAIRS = tuple((beta, BETA2) for beta in BETAS)  # for Adam's two


def _muon_like(name: str, make: Any) -> Arm:
    return Arm(name, make, momentum="momentum", momenta=BETAS, start=Point(1e-2, 0.9, 4.0))


def _ours(structure: str, lr: float) -> Arm:
    name = f"AdaFisherW, {structure}"
    knobs = {"structure": structure}
    return Arm(name, adafisherw, knobs, finds_tables=True, momentum="beta", momenta=BETAS, start=Point(lr, 0.9, 4.0))


ADAMW = Arm(
    "AdamW",
    adamw,
    {"fused": True},
    momentum="betas",
    momenta=((0.9, 0.95), (0.9, 0.999)),
    start=Point(3e-3, (0.9, 0.95), 4.0),
)
ADAFACTOR = Arm("Adafactor", adafactor, start=Point(3e-3, None, 4.0))
SOAP = Arm(
    "SOAP",
    soap,
    {"max_precondition_dim": 1024},
    momentum="betas",
    momenta=PAIRS,
    start=Point(6e-3, (0.9, BETA2), 4.0),
)
MUON = _muon_like("Muon", muon)
NORMUON = _muon_like("NorMuon", normuon)
SOAP_MUON = _muon_like("SOAP-Muon", soap_muon)
DIAGONAL = _ours("diagonal", 3e-3)
KRONECKER = _ours("kronecker", 1e-2)
ORTHOGONAL = _ours("orthogonal", 1e-2)

ARMS = (ADAMW, ADAFACTOR, SOAP, MUON, NORMUON, SOAP_MUON, DIAGONAL, KRONECKER, ORTHOGONAL)
