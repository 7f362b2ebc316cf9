"""``python -m adafisher_hf``, for launchers that take a module: ``accelerate launch -m adafisher_hf run train.py``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
