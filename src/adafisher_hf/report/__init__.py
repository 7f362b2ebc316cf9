"""``adafisher-hf report``: what happened in one or several training runs, on one page.

The way of the data: ``folders`` reads the runs (``tensorboard`` and ``wandb`` what trackers have), ``findings`` picks
what stands out, ``training`` and ``layers`` say which pictures there are, ``curves`` and ``heatmaps`` draw them,
``tables`` and ``page`` write the HTML, ``files`` puts it on the disk, and ``watch`` again and again.
"""

from .files import write_report
from .watch import watch

__all__ = ["watch", "write_report"]
