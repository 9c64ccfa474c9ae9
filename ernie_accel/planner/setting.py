"""What a plan is for: model, devices, precision, load and split, all of it decided; plans are functions of this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.counts import Part
from ernie_accel.backends.base import Footprint, LoadOptions
from ernie_accel.planner.devices import Devices
from ernie_accel.planner.subject import Subject

__all__ = ["Degrees", "Estimator", "Setting"]

Estimator = Callable[[ModelConfig, LoadOptions], Footprint]
"""``Backend.estimate``."""


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How a model is divided.

    Attributes:
        tensor: Devices that share every matrix.
        pipeline: Groups of layers that follow one another.
        data: Copies, each with its own requests.
        expert: Devices that share the experts of a layer; 1 where experts are divided by their width like all else.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        names = (
            ("tensor", self.tensor),
            ("pipeline", self.pipeline),
            ("data", self.data),
            ("expert", self.expert),
        )
        return ", ".join(f"{name} {value}" for name, value in names if value > 1) or "not divided"

    def stages(self, layers: int) -> tuple[range, ...]:
        """Layers of each pipeline stage; the first ones have one more where they do not divide evenly."""
        each, rest = divmod(layers, self.pipeline)
        ends = [0]
        for stage in range(self.pipeline):
            ends.append(ends[-1] + each + (stage < rest))
        return tuple(range(begin, end) for begin, end in pairwise(ends))

    def parts(self, layers: int) -> tuple[Part, ...]:
        """What one device of each pipeline stage holds."""
        return tuple(
            Part(tensor=self.tensor, expert=self.expert, layers=stage) for stage in self.stages(layers)
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that a plan depends on.

    Attributes:
        subject: The model.
        devices: All that there are.
        backend: Name of what computes.
        estimate: Its ``Backend.estimate``.
        precision: Of the weights.
        options: What the backend is asked with; ``max_context`` and ``max_batch`` are the load that is planned for,
            ``memory_limit`` bounds the KV cache.
        degrees: How the model is divided.
        utilization: Share of an accelerator's memory that is used.
        offered: Precisions that the backend has.
        packs: Whether it packs weights, so that int8 and int4 are calibrated before it sees them.
    """

    subject: Subject
    devices: Devices
    backend: str
    estimate: Estimator
    precision: str
    options: LoadOptions
    degrees: Degrees = Degrees()
    utilization: float = 0.9
    offered: tuple[str, ...] = ()
    packs: bool = False

    @property
    def context(self) -> int:
        """Tokens of prompt and output together, of every sequence."""
        return self.options.max_context or 1

    @property
    def sequences(self) -> int:
        """Requests that are decoded together, on all devices."""
        return self.options.max_batch or 1

    @property
    def sequences_of_copy(self) -> int:
        """... in one data-parallel copy."""
        return -(-self.sequences // self.degrees.data)

    @property
    def mtp(self) -> bool:
        """Whether weights of multi-token prediction are loaded."""
        return self.options.multi_token

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are processors."""
        return self.devices.device.kind == "cpu"
