"""The two streams of hidden states that walk through a model while it is quantised."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ernie_accel.quant.calculator import Array

__all__ = ["Streams"]


class Streams(NamedTuple):
    """Both [T, width]: ``ours`` went through the layers as quantised, ``ideal`` through those of the checkpoint.

    Where nobody asks for the ideal one, both are one array and are computed once.
    """

    ours: Array
    ideal: Array

    def map(self, function: Callable[[Array], Array]) -> Streams:
        """Apply a function of one array to both."""
        ours = function(self.ours)
        return Streams(ours, ours if self.ideal is self.ours else function(self.ideal))

    def with_others(self, function: Callable[..., Array], *others: Streams) -> Streams:
        """Apply a function of several arrays to all of ours, and to all of the ideal ones."""
        ours = function(self.ours, *(other.ours for other in others))
        if self.ideal is self.ours:
            return Streams(ours, ours)
        return Streams(ours, function(self.ideal, *(other.ideal for other in others)))
