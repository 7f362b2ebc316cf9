"""AdaFisher for Hugging Face Transformers. Importing it registers ``optim="adafisher"`` and ``"adafisherw"``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import AdaFisherConfig
from .curvature import CoverageRow, coverage
from .integrations.callbacks import CurvatureCallback
from .integrations.registration import is_registered, register, unregister
from .optimizer import AdaFisher, AdaFisherW

if TYPE_CHECKING:
    from .integrations.trainer import AdaFisherSeq2SeqTrainer, AdaFisherTrainer

__version__ = "0.1.0"

__all__ = [
    "AdaFisher",
    "AdaFisherConfig",
    "AdaFisherSeq2SeqTrainer",
    "AdaFisherTrainer",
    "AdaFisherW",
    "CoverageRow",
    "CurvatureCallback",
    "coverage",
    "is_registered",
    "register",
    "unregister",
]


def __getattr__(name: str) -> Any:
    # The Trainer classes pull in half of transformers; whoever only steps an optimizer does not wait for that.
    if name in ("AdaFisherTrainer", "AdaFisherSeq2SeqTrainer"):
        from .integrations import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
