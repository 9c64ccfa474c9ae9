"""``MemoryPlan``: what a model would need and give on some devices, and whether it fits."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ernie_accel.display import size
from ernie_accel.errors import ArgumentError, CapacityError, CheckpointError, MissingExtraError
from ernie_accel.planner.memory import DeviceMemory
from ernie_accel.planner.setting import Degrees, Setting
from ernie_accel.planner.speed import Speed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Change", "MemoryPlan"]


@dataclass(frozen=True)
class Change:
    """Something that would make a plan fit: what to set, what it costs, and what is needed then."""

    setting: str
    cost: str
    required: int

    def __str__(self) -> str:
        return f"{self.setting}: {size(self.required)} a device; {self.cost}"


@dataclass(frozen=True, kw_only=True, repr=False)
class MemoryPlan:
    """What ``ernie_accel.plan`` returns; prints as a table, in notebooks too. Sizes are bytes.

    Attributes:
        model: As it was named.
        parameters: By class, of the whole model.
        backend: What computes.
        precision: Of the weights.
        kv_precision: Of the KV cache.
        devices: For instance ``"8xA100-80G"``.
        degrees: How the model is divided over them.
        context: Tokens of prompt and output together, of each sequence.
        sequences: Requests that are decoded together.
        step_tokens: Most tokens of one step: the chunk that prompts are read in.
        stages: Memory of one device of each pipeline stage, mostly just one.
        loading: Most that loading takes in a process, file-mapped pages left out; None where it is not ours to know.
        mapped: Of the weights, what lies in a mapped file: in memory while it is free, and shared between processes.
        max_context: Largest context that so many sequences can have.
        max_sequences: Most sequences of that context.
        longest: Largest context that one sequence alone can have.
        constraint: One sentence: what binds.
        changes: What would make it fit, the least costly first; empty where it does.
        speed: Tokens per second, as a ceiling and to expect.
        warnings: What would surprise, one sentence each.
        assumptions: What the figures rest on that nobody published or measured here.
    """

    model: str
    parameters: Mapping[str, int]
    backend: str
    precision: str
    kv_precision: str
    devices: str
    degrees: Degrees
    context: int
    sequences: int
    step_tokens: int
    stages: tuple[DeviceMemory, ...]
    loading: int | None
    mapped: int
    max_context: int
    max_sequences: int
    longest: int
    constraint: str
    changes: tuple[Change, ...]
    speed: Speed
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    setting: Setting = field(compare=False)

    @property
    def mtp(self) -> bool:
        """Whether weights of multi-token prediction are counted."""
        return self.setting.mtp

    @property
    def fits(self) -> bool:
        """Whether all of it has room at once: weights, working memory, and the KV cache of the whole load."""
        return all(stage.fits for stage in self.stages)

    @property
    def device(self) -> DeviceMemory:
        """The device with the least room left."""
        return min(self.stages, key=lambda stage: stage.headroom)

    @property
    def required(self) -> int:
        """Bytes that the fullest device needs."""
        return self.device.required

    @property
    def available(self) -> int:
        """Bytes that may be used on it."""
        return self.device.usable

    @property
    def peak(self) -> int:
        """Anonymous memory of a process at the full load, for one device: weights of a mapped file left out."""
        return self.required - self.mapped

    def total(self) -> dict[str, int]:
        """Bytes on all devices in use, by what they are for."""
        sums: Counter[str] = Counter()
        for stage in self.stages:
            sums.update({name: stage.devices * value for name, value in stage.parts().items()})
        return dict(sums)

    def check(self) -> None:
        """Raise CapacityError with required, available and what would fit, unless it fits."""
        if not self.fits:
            raise CapacityError(self.refusal())

    def refusal(self) -> str:
        """Say why it does not fit, and what would."""
        most = (
            f"the largest context that {self.sequences} of them can have is {self.max_context:,} tokens"
            if self.max_context
            else f"not even a page of KV cache fits for {self.sequences} of them"
        )
        change = f" To make it fit: {self.changes[0]}." if self.changes else ""
        return (
            f"{self.model} in {self.precision} with {self.sequences} x {self.context:,} tokens needs {self.required:,} "
            f"bytes on {self.devices}, where {self.available:,} are available; {most}. {self.constraint}{change}"
        )

    def table(self) -> str:
        """Return it as text: what was planned, bytes by what they are for, limits, speed."""
        from ernie_accel.planner.report import text

        return text(self)

    def explain(self) -> str:
        """Return paragraphs that derive the numbers: what was counted, how it was divided, what binds, how fast."""
        from ernie_accel.planner.explain import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``to_json`` writes."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "setting"}
        values["degrees"] = asdict(self.degrees)
        values["stages"] = [
            {**asdict(stage), "required": stage.required, "headroom": stage.headroom} for stage in self.stages
        ]
        values["changes"] = [asdict(change) for change in self.changes]
        values["speed"] = asdict(self.speed)
        return {
            **values,
            "parameters": dict(self.parameters),
            "fits": self.fits,
            "required": self.required,
            "available": self.available,
            "total": self.total(),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return everything as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_fastdeploy(self, *, ips: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the engine arguments of FastDeploy 2.x that this plan stands for, as ``LLM(**arguments)`` takes them.

        Written to a file as JSON they are what its server takes with ``--config``.

        Args:
            ips: Addresses of the machines, the one that serves first, where a copy of the model lies on several.

        Raises:
            UnsupportedError: FastDeploy does not offer what was planned.
            ArgumentError: There are more or fewer machines than addresses.
        """
        from ernie_accel.planner.export import fastdeploy_arguments

        return fastdeploy_arguments(self, ips)

    def to_paddle(self) -> dict[str, Any]:
        """Return the settings of a hybrid-parallel group of ``paddle.distributed`` for this plan: degrees and start.

        Raises:
            UnsupportedError: The plan is for one process on a processor.
        """
        from ernie_accel.planner.export import paddle_settings

        return paddle_settings(self)

    def to_kubernetes(self) -> dict[str, Any]:
        """Return the part of a container of a Kubernetes pod that follows from the plan: resources, probes, memory."""
        from ernie_accel.planner.export import kubernetes_container

        return kubernetes_container(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw a stacked bar for each stage beside what a device has; ``path`` is where to save it, PNG or SVG.

        Raises:
            MissingExtraError: matplotlib (extra ``plot``) is not installed.
        """
        return plot_plans([self], path)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        from ernie_accel.planner.report import html

        return html(self)


def plot_plans(plans: list[MemoryPlan], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw several plans side by side; errors as in ``MemoryPlan.plot``."""
    try:
        from ernie_accel.planner.plot import draw
    except ImportError as error:
        raise MissingExtraError.of("plot", "drawing a MemoryPlan") from error
    figure = draw(plans)
    if path is not None:
        try:
            figure.savefig(path)
        except ValueError as error:
            raise ArgumentError(f"path={str(path)!r}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    return figure
