"""Settings of the backends that run on FastDeploy 1.x."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ernie_accel.backends.static_graph.backend import DEFAULT_STEP_TOKENS, check_seconds, check_step_tokens
from ernie_accel.errors import ArgumentError

__all__ = ["FastDeployRuntimeOptions", "Range", "TensorRTOptions"]

Range = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Least, best and greatest shape."""

RANKS = {"input_ids": 2, "past_length": 1}
DEFAULT_IDS: Range = ((1, 1), (16, 512), (32, 1024))


@dataclass(frozen=True, kw_only=True)
class FastDeployRuntimeOptions:
    """Settings of ``fastdeploy-ort`` and ``fastdeploy-openvino`` that no other backend has.

    Attributes:
        python: The interpreter that has FastDeploy 1.x, for which packages exist up to Python 3.10; None takes
            ``ERNIE_ACCEL_FASTDEPLOY_PYTHON``, else the one that runs this library.
        max_step_tokens: Largest number of tokens of one step.
        load_timeout: Seconds that importing FastDeploy and loading the graph may take, each.
        step_timeout: Seconds that a step may take; after that its process is ended.
    """

    python: str | os.PathLike[str] | None = None
    max_step_tokens: int = DEFAULT_STEP_TOKENS
    load_timeout: float = 1800.0
    step_timeout: float = 600.0

    def __post_init__(self) -> None:
        check_step_tokens(self.max_step_tokens)
        for name in ("load_timeout", "step_timeout"):
            check_seconds(name, getattr(self, name))
        if self.python is not None and not isinstance(self.python, (str, os.PathLike)):
            raise ArgumentError(f"python={self.python!r}: must be the path of an interpreter, or None")


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions(FastDeployRuntimeOptions):
    """Settings of ``tensorrt``.

    Attributes:
        profile: Least, best and greatest shape for which the engine is made. ``"input_ids"`` is [sequences of a call,
            new tokens of each], by default (1, 1), (16, 512), (32, 1024); ``"past_length"`` is [tokens before them], by
            default 1, the new tokens' best number, and twice their greatest. Nothing outside is asked of the engine:
            ``max_step_tokens`` and ``max_context`` are at most the greatest, and larger batches are divided.
        cache_file: Where the engine is kept once it is built, which takes minutes; None builds it at every load.
            A second file beside it, ``.json``, says which model, profile and precision it belongs to.
        workspace: Bytes of GPU memory that its building may try methods with.
    """

    profile: Mapping[str, Range] | None = None
    cache_file: str | os.PathLike[str] | None = None
    workspace: int = 1 << 30

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, shapes in (self.profile or {}).items():
            _check_range(name, shapes)
        if self.cache_file is not None and not isinstance(self.cache_file, (str, os.PathLike)):
            raise ArgumentError(f"cache_file={self.cache_file!r}: must be a path, or None")
        size = self.workspace
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ArgumentError(f"workspace={size!r}: must be a number of bytes of at least 1")

    @property
    def ids(self) -> Range:
        """The profile of ``input_ids``."""
        return (self.profile or {}).get("input_ids", DEFAULT_IDS)

    @property
    def past(self) -> Range:
        """The profile of ``past_length``."""
        _, best, greatest = self.ids
        return (self.profile or {}).get("past_length", ((1,), (best[1],), (2 * greatest[1],)))


def _check_range(name: str, shapes: object) -> None:
    if name not in RANKS:
        raise ArgumentError(f"profile: {name!r} must be one of {', '.join(RANKS)}")
    wanted = (
        f"profile[{name!r}]={shapes!r}: must be three shapes of {RANKS[name]} numbers of at least 1 each, "
        "least, best and greatest, none greater than the next, the least all 1: steps of one token, and without "
        "any before them, come with every text"
    )
    if not isinstance(shapes, Sequence) or len(shapes) != 3:
        raise ArgumentError(wanted)
    for shape in shapes:
        whole = isinstance(shape, Sequence) and all(isinstance(n, int) and n >= 1 for n in shape)
        if not whole or len(shape) != RANKS[name]:
            raise ArgumentError(wanted)
    least, best, greatest = shapes
    if any(n != 1 for n in least) or not all(
        a <= b <= c for a, b, c in zip(least, best, greatest, strict=True)
    ):
        raise ArgumentError(wanted)
