"""What every kind of layer has to say about itself: what h is, what δ is, how its parameters lie over the two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .fused import Fused

Side = Literal["input", "output", "unit"]
# hidden: a matrix between two layers of the network. vocabulary: a table that is looked up, or a head whose outputs are
# the model's own. router: chooses experts. adapter: a low-rank factor. vector: biases, norms, single rows. other: none
# of these by what is known of it. excluded: a hidden matrix that the user wants treated like the others.
Role = Literal["hidden", "vocabulary", "router", "adapter", "vector", "other", "excluded"]


@dataclass(frozen=True)
class OneHot:
    """Tokens that are one-hot vectors (token ids), kept as their indices.

    Attributes:
        ids: int64, shape ``(tokens,)``.
        size: length of the one-hot vectors.
    """

    ids: Tensor
    size: int


Tokens = Tensor | OneHot  # one vector a token; a Tensor has shape (stack, tokens, features)


@dataclass(frozen=True)
class Layout:
    """How one parameter, viewed as a stack of matrices, lies over the factors of its layer.

    Attributes:
        shape: the view ``(stack, rows, cols)``; numel equals the parameter's.
        row: which side of the layer runs along the rows, ``"input"`` (h) or ``"output"`` (δ).
        col: the same for the columns; ``"unit"`` is the constant 1 that a bias sees as its input.
        elementwise: the two sides run along the same axis (norm weights), F = row ∘ col instead of row ⊗ col.
        independent: every matrix of the stack is a block of its own (an expert), with its own scale.
        bias_input: d_in of a layer whose bias augments its input to d_in + 1; 0 without a bias.
        role: what the parameter is for in its model.
        fused: of which matrices it consists; None: it is one.
    """

    shape: tuple[int, int, int]
    row: Side = "output"
    col: Side = "input"
    elementwise: bool = False
    independent: bool = False
    bias_input: int = 0
    role: Role = "other"
    fused: Fused | None = None

    @property
    def output_dim(self) -> int:
        """Which dimension of the view runs along the layer's outputs: -2, its rows, or -1."""
        return -1 if self.col == "output" else -2

    def split_as(self, fused: Fused | None) -> Layout:
        """The same of a fused projection; as it is where the outputs are not as many as that has."""
        fits = fused is not None and self.shape[self.output_dim] == fused.length
        return dataclasses.replace(self, fused=fused) if fits else self

    def turned_to(self, output_dim: int) -> Layout:
        """The same with the outputs along this dimension, -2 or -1; for what only its gradient is known of."""
        return self if output_dim == self.output_dim else dataclasses.replace(self, row=self.col, col=self.row)

    def lengths(self) -> dict[Side, int]:
        """How long the statistics of h and δ are that this parameter needs."""
        lengths: dict[Side, int] = {self.row: self.shape[1], self.col: self.shape[2]}
        if self.elementwise:
            lengths[self.col] = self.shape[1]
        if self.bias_input:
            lengths["input"] = self.bias_input
        lengths.pop("unit", None)
        return lengths


def weight_layout(shape: tuple[int, int, int], module: Any, transposed: bool = False) -> Layout:
    """A weight that maps inputs (columns, or rows if transposed) to outputs."""
    inputs = shape[1] if transposed else shape[2]
    row, col = ("input", "output") if transposed else ("output", "input")
    return Layout(shape, row, col, bias_input=inputs if module.bias is not None else 0)  # type: ignore[arg-type]


def bias_layout(bias: Tensor, stack: int = 1, inputs: int = 0) -> Layout:
    """A bias is the augmented input coordinate of its layer, h = 1: its curvature is S alone."""
    return Layout((stack, bias.numel() // stack, 1), col="unit", bias_input=inputs)


def gradient_layout(parameter: Tensor, owner: nn.Module | None) -> Layout:
    """The layout of a parameter that no hooked module owns: vectors as they are, everything else as one matrix.

    More than two dimensions are cut in two where rows and columns are fewest: (768, 12, 64) of XLNet's heads is 768 ×
    768, (1, 197, 768) of positions 197 × 768. Of experts every slice is a block of its own.
    """
    lengths = [length for length in parameter.shape if length != 1]
    if len(lengths) < 2:
        return Layout((1, parameter.numel(), 1), col="unit")
    if parameter.dim() == 3 and "Expert" in type(owner).__name__:
        return Layout(tuple(parameter.shape), independent=True)  # type: ignore[arg-type]
    cuts = [(math.prod(lengths[:i]), math.prod(lengths[i:])) for i in range(1, len(lengths))]
    return Layout((1, *min(cuts, key=sum)))


class LayerKind:
    """One kind of layer. Subclasses say what h and δ are; they hold no state.

    ``inputs`` may return None: this call cannot be captured, and the parameters fall back to their gradients.
    """

    name: str

    def matches(self, module: nn.Module) -> bool:
        raise NotImplementedError

    def layout(self, module: Any, attribute: str) -> Layout | None:
        """The layout of ``getattr(module, attribute)``, or None where this kind has no curvature for it."""
        raise NotImplementedError

    def part(self, attribute: str) -> str | None:
        """Which of a module's linear maps a parameter belongs to, where it has several; they have a tap each."""
        return None

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        """The leading dimensions that count tokens, to be compared with an attention mask; None: never masked."""
        return output.shape[:-1]

    def sequence(self, module: Any, args: tuple, output: Tensor) -> int | None:
        """How many tokens follow one another in a sequence; None: nobody knows, and every token is measured.

        Tokens that stand for whole examples are few, and those with heads could be (batch, heads, tokens).
        """
        shape = self.token_shape(module, args, output)
        return None if shape is None or len(shape) != 2 else shape[1]

    def input_key(self, module: Any) -> Hashable:
        """Everything that h depends on beside the layer's input: where two layers have the same key and the same input,
        they share its second moment. A kind that does not say so shares with nobody."""
        return id(module)

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tokens | None:
        """h of every token: shape (stack, tokens, d_in)."""
        raise NotImplementedError

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        """δ of every token: shape (stack, tokens, d_out)."""
        return as_tokens(grad_output)


def as_tokens(x: Tensor) -> Tensor:
    """(..., features) → (1, tokens, features)."""
    return x.reshape(1, -1, x.shape[-1])


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Statistics are float32, float64 for float64 data: half precision overflows when squared."""
    return torch.float64 if dtype == torch.float64 else torch.float32
