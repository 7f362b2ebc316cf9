"""The options of an optimizer: their ranges and help, the string and the file that hold them, and the way to the Hub.

``base`` is the config of any optimizer, ``adafisher`` that of AdaFisher and AdaFisherW. None of it needs torch.
"""

from __future__ import annotations

from .base import OptimizerConfig
from .knobs import Interval, knob

__all__ = ["Interval", "OptimizerConfig", "knob"]
