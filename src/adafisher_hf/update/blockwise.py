"""Momentum in 8 bits: a byte a number and a float32 scale a block of numbers (Dettmers et al. 2022), by bitsandbytes.

Codes and scales are two plain tensors of the state, not a tensor subclass: whatever saves, copies, splits or sends
tensors takes them as they are.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from ..layers import Layout
from ..preconditioners.base import is_normal

SCALE = "exp_avg_scale"  # in the state of a parameter whose momentum is in 8 bits
LENGTHS = (128, 64)  # numbers a block; longer ones divide fewer widths and would save 0.03 bytes a number at most
SMALLEST = 4096  # numbers that are worth it, as in bitsandbytes' own optimizers
OLDEST = "0.50"  # of bitsandbytes: older kernels crash on blocks of zeros, or change their levels (both on CPUs)


@functools.cache
def library() -> ModuleType:
    """``bitsandbytes.functional``.

    Raises:
        ImportError: it is not installed, or too old.
    """
    try:
        from bitsandbytes import __version__, functional
    except ImportError as error:
        raise ImportError(_needed("which is not installed")) from error
    if TorchVersion(__version__) < OLDEST:
        raise ImportError(_needed(f"not {__version__}"))
    return functional


def block_length(layout: Layout) -> int | None:
    """Numbers a block of a parameter's momentum; None where it stays wide.

    A block lies inside a row of the parameter's matrices, so that ranks and experts split between blocks.
    """
    if math.prod(layout.shape) < SMALLEST:
        return None
    return next((length for length in LENGTHS if layout.shape[2] % length == 0), None)


def firsts(codes: Tensor, length: int) -> Tensor:
    """The first number of each block, (first dimension, blocks): split over the ranks as the codes are."""
    return codes.reshape(codes.shape[0], -1, length)[..., 0]


def read(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The momentum that codes and scales stand for.

    Args:
        codes: uint8, of any shape.
        scale: float32, one a block of as many numbers as it takes.
        dtype: of the result.
    """
    if not codes.numel():
        return codes.to(dtype)
    length = codes.numel() // scale.numel()
    levels = _levels(codes.device)
    return library().dequantize_blockwise(codes, absmax=scale.reshape(-1), code=levels, blocksize=length).to(dtype)


def write(momentum: Tensor, codes: Tensor, scale: Tensor, taken: Tensor) -> None:
    """Rounds a momentum to the nearest codes, in place.

    Args:
        momentum: in the shape of ``codes``.
        codes: as in ``read``.
        scale: as in ``read``.
        taken: shape (); where it is False, codes and scales stay as they are: rounding twice is not rounding once.

    A block whose largest magnitude float32 has no digits for, of float64 parameters, becomes zero.
    """
    if not codes.numel():
        return
    length = codes.numel() // scale.numel()
    new, kept = library().quantize_blockwise(momentum.float(), code=_levels(codes.device), blocksize=length)
    largest = torch.where(is_normal(kept.absmax), kept.absmax, 0.0).view(scale.shape)
    torch.where(taken, new, codes, out=codes)
    torch.where(taken, largest, scale, out=scale)


@functools.cache
def _levels(device: torch.device) -> Tensor:
    """What the 256 codes stand for, in units of the scale: copied to a device once, which waits for it."""
    return library().create_dynamic_map().to(device)


def _needed(found: str) -> str:
    return (
        f"state_dtype=int8 needs bitsandbytes {OLDEST} or newer, {found}: pip install --upgrade 'adafisher-hf[int8]' "
        "(or take state_dtype=bfloat16)"
    )
