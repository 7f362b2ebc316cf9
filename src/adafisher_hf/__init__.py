"""AdaFisher for Hugging Face Transformers. Importing it registers ``optim="adafisherw"`` and what else there is.

Nothing below is loaded before it is used, and transformers is patched when it is imported: see
``integrations.patches``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .integrations.optimizers import (
    is_registered,
    register,
    register_optimizer,
    unregister,
    unregister_optimizer,
)

if TYPE_CHECKING:
    from .config.adafisher import AdaFisherConfig
    from .config.family import AdamQLRConfig, FAdamConfig, MuonConfig, SIRFShampooConfig, SOAPConfig
    from .family.adamqlr import AdamQLR
    from .family.fadam import FAdam
    from .family.muon import Muon
    from .family.sirfshampoo import SIRFShampoo
    from .family.soap import SOAP
    from .insight.coverage import CoverageRow, coverage
    from .integrations.callbacks import CurvatureCallback
    from .integrations.trainer import AdaFisherSeq2SeqTrainer, AdaFisherTrainer
    from .optimizer import AdaFisher, AdaFisherW

__version__ = "0.1.0"

__all__ = [
    "SOAP",
    "AdaFisher",
    "AdaFisherConfig",
    "AdaFisherSeq2SeqTrainer",
    "AdaFisherTrainer",
    "AdaFisherW",
    "AdamQLR",
    "AdamQLRConfig",
    "CoverageRow",
    "CurvatureCallback",
    "FAdam",
    "FAdamConfig",
    "Muon",
    "MuonConfig",
    "SIRFShampoo",
    "SIRFShampooConfig",
    "SOAPConfig",
    "coverage",
    "is_registered",
    "register",
    "register_optimizer",
    "unregister",
    "unregister_optimizer",
]

_LAZY = {
    "AdaFisher": ".optimizer",
    "AdaFisherConfig": ".config.adafisher",
    "AdaFisherSeq2SeqTrainer": ".integrations.trainer",
    "AdaFisherTrainer": ".integrations.trainer",
    "AdaFisherW": ".optimizer",
    "AdamQLR": ".family.adamqlr",
    "AdamQLRConfig": ".config.family",
    "CoverageRow": ".insight.coverage",
    "CurvatureCallback": ".integrations.callbacks",
    "FAdam": ".family.fadam",
    "FAdamConfig": ".config.family",
    "Muon": ".family.muon",
    "MuonConfig": ".config.family",
    "SIRFShampoo": ".family.sirfshampoo",
    "SIRFShampooConfig": ".config.family",
    "SOAP": ".family.soap",
    "SOAPConfig": ".config.family",
    "coverage": ".insight.coverage",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register()
