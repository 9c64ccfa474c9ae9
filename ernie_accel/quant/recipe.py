"""What a quantization does: bits, groups, exact columns, and how codes are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ernie_accel.checkpoint.quantised import ActivationGroups, Bits
from ernie_accel.errors import ArgumentError

__all__ = ["Kind", "QuantPrecision", "Recipe"]

QuantPrecision = Literal["int8", "int4"]

SMALL = 150_000_000
"""Parameters up to which a load calibrates with all tokens of the recipe."""
SHORT_TOKENS = 2048

Kind = Literal["qkv", "o", "gate_up", "down", "head"]
"""Matrices that read one input: query, key and value; output; gate and up; down; the vocabulary head."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is quantised; ``for_precision`` gives the ones that the library uses.

    Attributes:
        precision: What the result is called.
        bits: Bits of the codes of every matrix but the head.
        group: Columns of a weight scale.
        down_group: ... in ``down_proj``.
        head_bits: Bits of the codes of the vocabulary head (and so of a tied embedding).
        head_group: Columns of a weight scale in the head.
        activations: Columns that share a scale in activations.
        exact_most: Columns of a matrix that stay bfloat16, at most; even.
        exact_every: ... and two of them for every so many columns, so that narrow matrices do not grow.
        down_exact_every: ... in ``down_proj``, which is the widest and has finer groups.
        feedback: Whether codes make up for the rounding of those before them (needs calibration).
        fold: Whether factors that make activations even are folded into norms and rows before (needs calibration).
        follow: How much of the error of earlier layers the weights make up for, from 0 to 1 (needs ``feedback``); less
            where there are few tokens for the width of a matrix.
        clips: Scales that are tried, as shares of the one that clips nothing.
        damping: Share of the mean diagonal that is added to the diagonal of a Gram matrix.
        tokens: Calibration tokens.
        sequence: Tokens of one calibration sequence.
    """

    precision: QuantPrecision
    bits: Bits
    group: int
    down_group: int
    head_bits: Bits
    head_group: int
    activations: ActivationGroups = field(default_factory=ActivationGroups)
    exact_most: int = 8
    exact_every: int = 64
    down_exact_every: int = 64
    feedback: bool = True
    fold: bool = True
    follow: float = 0.0
    clips: tuple[float, ...] = (1.0,)
    damping: float = 0.01
    tokens: int = 8192
    sequence: int = 256

    def __post_init__(self) -> None:
        groups = (
            (self.group, self.activations.body),
            (self.down_group, self.activations.down),
            (self.head_group, self.activations.head),
        )
        for weights, activations in groups:
            if weights % 16 or not 16 <= weights <= 256 or weights % activations:
                raise ArgumentError(
                    f"a group of {weights} weights: must be a multiple of 16 up to 256, and of the {activations} "
                    "activations that share a scale"
                )
        if self.exact_most % 2 or not 0 <= self.exact_most <= 64:
            raise ArgumentError(f"exact_most={self.exact_most}: must be an even number from 0 to 64")
        if self.tokens < 1 or self.sequence < 1:
            raise ArgumentError(f"tokens={self.tokens}, sequence={self.sequence}: must be at least 1")
        if not self.clips or min(self.clips) <= 0:
            raise ArgumentError(f"clips={self.clips}: must be one or more positive numbers")

    @classmethod
    def for_precision(cls, precision: QuantPrecision) -> Recipe:
        """Return the library's recipe.

        Raises:
            ArgumentError: ``precision`` is neither int8 nor int4.
        """
        if precision == "int8":
            return cls(
                precision="int8",
                bits=8,
                group=128,
                down_group=128,
                head_bits=8,
                head_group=64,
                feedback=False,  # 255 codes leave nothing to make up for: measured, see docs/design/quantization.md
                tokens=2048,
            )
        if precision == "int4":
            return cls(
                precision="int4",
                bits=4,
                group=128,
                down_group=128,
                head_bits=6,
                head_group=64,
                exact_every=256,
                down_exact_every=512,
                follow=0.5,
                clips=(1.07, 1.0, 0.93, 0.86, 0.8),
            )
        raise ArgumentError(f"precision={precision!r}: must be int8 or int4")

    def short(self, parameters: int) -> Recipe:
        """Return the recipe for a load, which should not take longer than half a minute: large models see less text."""
        return replace(self, tokens=min(self.tokens, SHORT_TOKENS)) if parameters > SMALL else self

    def bits_of(self, kind: Kind) -> Bits:
        """Bits of a code."""
        return self.head_bits if kind == "head" else self.bits

    def group_of(self, kind: Kind) -> int:
        """Columns of a weight scale."""
        return self.head_group if kind == "head" else self.down_group if kind == "down" else self.group

    def activation_group(self, kind: Kind) -> int:
        """Columns of an activation scale."""
        groups = self.activations
        return groups.head if kind == "head" else groups.down if kind == "down" else groups.body

    def exact_columns(self, kind: Kind, cols: int) -> int:
        """Number of columns of a matrix that stay bfloat16: even."""
        every = self.down_exact_every if kind == "down" else self.exact_every
        return min(self.exact_most, 2 * (cols // every))

    def describe(self, source: str) -> str:
        """One sentence for ``model.info``; ``source`` says what it was calibrated on, "" for nothing."""
        smooth = "smoothed" if source and self.fold else ""
        kept = f"up to {self.exact_most} exact columns a matrix" if source and self.exact_most else ""
        fed = "rounding errors fed back (GPTQ)" if source and self.feedback else "rounded to nearest"
        parts = [
            f"{self.bits}-bit weights in groups of {self.group}",
            f"{self.head_bits}-bit head",
            kept,
            smooth,
            fed,
            f"calibrated on {source}" if source else "without data",
        ]
        return ", ".join(part for part in parts if part) + "."
