"""``ernie_accel.plan``: from what a user names to a plan."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from ernie_accel.architecture.counts import parameter_counts
from ernie_accel.backends import registry
from ernie_accel.backends.accelerator import FORMATS, MAX_SEQUENCES, accelerator_footprint
from ernie_accel.backends.base import Backend, LoadOptions, PackingBackend
from ernie_accel.errors import ArgumentError, UnsupportedError
from ernie_accel.hub import check_hub_options
from ernie_accel.planner.changes import changes_of
from ernie_accel.planner.checks import check_counts, check_switches, check_utilization
from ernie_accel.planner.degrees import Degree, Wishes, choose_degrees
from ernie_accel.planner.devices import Device, Devices, find_devices, shared_out
from ernie_accel.planner.limits import constraint, largest_context, largest_sequences
from ernie_accel.planner.loading import loading_bytes, mapped_bytes
from ernie_accel.planner.memory import device_memory, footprint_of
from ernie_accel.planner.notes import assumptions_of, warnings_of
from ernie_accel.planner.plan import MemoryPlan
from ernie_accel.planner.precisions import UNSAID, kv_precision_name, precision_name
from ernie_accel.planner.setting import Estimator, Setting
from ernie_accel.planner.speed import speed_of
from ernie_accel.planner.subject import ModelSource, Subject, find_subject

__all__ = ["CONTEXT", "FASTDEPLOY", "complete", "plan"]

CONTEXT = 8192
"""Tokens that a plan is for unless it is told, or what the model was trained for if that is less."""

FASTDEPLOY = "fastdeploy"
"""The backend that serves on accelerators; planned for whether its adapter is installed or not."""


def plan(
    model: ModelSource,
    *,
    devices: str | Device | None = None,
    backend: str = "auto",
    precision: str = "auto",
    kv_precision: str = "auto",
    max_context: int | None = None,
    max_batch: int | None = None,
    step_tokens: int | None = None,
    memory_limit: int | None = None,
    threads: int | None = None,
    tensor_parallel: Degree = "auto",
    pipeline_parallel: Degree = 1,
    data_parallel: Degree = "auto",
    expert_parallel: bool = False,
    utilization: float = 0.9,
    mtp: bool = False,
    backend_options: object | None = None,
    probe: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> MemoryPlan:
    """Say whether a model fits on some devices, how to divide it, and how fast it can be: no weight is read.

    Args:
        model: A published shape such as ``"21B-A3B"`` or ``"VL-28B"``, a directory or config.json, a hub id, a
            configuration (``ModelConfig`` or the keys of a config.json), or a checkpoint from ``ernie_accel.testing``.
        devices: ``"8xA100-80G"``, ``"H100"``, ``"cpu"``, ``"cpu-64G"``, a ``Device``; None: what this machine has.
        backend: What computes; ``"auto"`` is what ``Model.load`` takes on such devices, by the rule of
            ``ernie_accel.backends.registry.pick``; as they need not be here to be asked, the first that it names.
        precision: Of the weights: fp32, bf16, fp16, fp8, int8, int4, w4a8, int2, or FastDeploy's names; ``"auto"``:
            what a quantized checkpoint holds, on a cpu the backend's own, else the widest that fits.
        kv_precision: Of the KV cache; ``"auto"``: the backend's own.
        max_context: Tokens of prompt and output together, of each sequence; None: 8,192 or what the model was trained
            for.
        max_batch: Sequences that are decoded together, over all devices; None: 1.
        step_tokens: Most tokens of one step, the chunk that prompts are read in; None: the backend's own.
        memory_limit: Bytes for the KV cache; None: 80 % of what is left on a cpu, all of it on an accelerator.
        threads: Of a cpu; None: one for each physical core.
        tensor_parallel: Devices that share every matrix; on a cpu, processes that do and share its memory evenly, with
            a backend that runs them.
        pipeline_parallel: Groups of layers, each on devices of its own.
        data_parallel: Copies of the model.
        expert_parallel: Divide experts over all devices instead of cutting each of them.
        utilization: Share of an accelerator's memory that may be used.
        mtp: Count the weights of multi-token prediction.
        backend_options: As for ``Model.load``.
        probe: Measure this machine's bandwidth and arithmetic, some tenths of a second, instead of assuming them.
        revision: Of a hub id.
        cache_dir: Where files of hub ids are kept.

    Raises:
        ArgumentError: A value can never work; says what is allowed.
        CheckpointError: The configuration is damaged.
        UnsupportedError: The backend or device lacks what was asked for.
        HubError: A hub id cannot be resolved.
    """
    check_hub_options(revision, cache_dir)
    counts = {"max_context": max_context, "max_batch": max_batch, "step_tokens": step_tokens}
    check_counts(**counts, memory_limit=memory_limit, threads=threads)
    check_switches(expert_parallel=expert_parallel, mtp=mtp, probe=probe)
    check_utilization(utilization)
    subject = find_subject(model, revision=revision, cache_dir=cache_dir)
    found = find_devices(devices, threads=threads, probe=probe)
    chosen = _backend(backend, found, backend_options)
    if found.device.kind == "cpu" and getattr(chosen.found, "splits", False):
        found, memory_limit = _processes(found.device, tensor_parallel, memory_limit)
    if mtp and not subject.config.num_nextn_predict_layers:
        raise ArgumentError(
            f"mtp=True: {subject.name} has no multi-token prediction; 21B-A3B and 300B-A47B have it"
        )
    options = LoadOptions(
        kv_precision=cast("Any", kv_precision_name(kv_precision)),
        device=found.device.kind,
        max_context=_context(subject, max_context),
        max_batch=max_batch or 1,
        memory_limit=memory_limit,
        threads=threads,
        step_tokens=step_tokens,
        backend_options=backend_options,
        multi_token=mtp,
    )
    request = _Request(
        subject=subject,
        devices=found,
        backend=chosen,
        options=options,
        wishes=Wishes(
            tensor=_fixed_tensor(subject, tensor_parallel),
            pipeline=pipeline_parallel,
            data=data_parallel,
            expert=expert_parallel,
        ),
        utilization=utilization,
    )
    return complete(request.settle(precision_name(precision)), request.wishes)


class _Planned(NamedTuple):
    """What computes: its name, what it answers for, and itself where it is installed."""

    name: str
    estimate: Estimator
    offered: tuple[str, ...]
    found: Backend | None = None


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Everything but the precision."""

    subject: Subject
    devices: Devices
    backend: _Planned
    options: LoadOptions
    wishes: Wishes
    utilization: float

    def settle(self, precision: str) -> Setting:
        """Choose precision and degrees."""
        settings = (self._setting(name) for name in self._precisions(precision))
        first = None
        for setting in settings:
            first = setting
            if all(stage.fits for stage in device_memory(setting)):
                break
        assert first is not None, "there is a precision to try"
        return first

    def _precisions(self, wanted: str) -> tuple[str, ...]:
        stored = self.subject.stored
        if wanted != "auto":
            if stored not in (None, wanted):
                raise UnsupportedError(
                    f"precision={wanted!r}: {self.subject.name} is quantized to {stored} and holds nothing else; leave "
                    "precision='auto', or plan for the checkpoint that it was made of"
                )
            self._check(wanted)
            return (wanted,)
        if stored is not None:
            self._check(stored)
            return (stored,)
        device = self.devices.device
        if self.backend.name != FASTDEPLOY:
            return (self.backend.offered[0],)
        return ("bf16" if device.bf16 else "fp16", "fp8" if device.fp8 else "int8", "int4")

    def _check(self, precision: str) -> None:
        """Refuse what backend or device lack."""
        device = self.devices.device
        if precision not in self.backend.offered and self.backend.found is not None:
            options = replace(self.options, precision=cast("Any", precision))
            registry.check_precision(self.backend.found, options)
        if device.kind == "gpu" and precision == "fp8" and not device.fp8:
            raise UnsupportedError(
                f"precision='fp8': {device.name} does not multiply FP8; int8 takes as much memory"
            )
        if device.kind == "gpu" and precision == "bf16" and not device.bf16:
            raise UnsupportedError(f"precision='bf16': {device.name} lacks bfloat16; use fp16")
        if self.backend.found is None and precision not in self.backend.offered:
            raise UnsupportedError(
                f"precision={precision!r}: {self.backend.name} has {', '.join(self.backend.offered)}"
            )

    def _setting(self, precision: str) -> Setting:
        setting = Setting(
            subject=self.subject,
            devices=self.devices,
            backend=self.backend.name,
            estimate=self.backend.estimate,
            offered=self.backend.offered,
            packs=isinstance(self.backend.found, PackingBackend),
            precision=precision,
            options=replace(self.options, precision=cast("Any", precision)),
            utilization=self.utilization,
        )
        return choose_degrees(setting, self.wishes)


def complete(setting: Setting, wishes: Wishes | None = None) -> MemoryPlan:
    """Make the plan of a setting in which all is decided; ``wishes`` are what changes may decide anew."""
    wishes = wishes or Wishes(
        tensor=setting.degrees.tensor, pipeline=setting.degrees.pipeline, data=setting.degrees.data
    )
    need = footprint_of(setting)
    if setting.options.step_tokens is None:
        setting = replace(setting, options=replace(setting.options, step_tokens=need.step_tokens))
    memory = device_memory(setting)
    fits = all(stage.fits for stage in memory)
    counts = parameter_counts(setting.subject.config, mtp=setting.mtp)
    speed = speed_of(setting, memory)
    loading = loading_bytes(setting, memory)
    return MemoryPlan(
        model=setting.subject.name,
        parameters={name: n for name, n in {**counts, **setting.subject.extras}.items() if n},
        backend=setting.backend,
        precision=setting.precision,
        kv_precision=need.kv_precision or setting.options.kv_precision,
        devices=str(setting.devices),
        degrees=setting.degrees,
        context=setting.context,
        sequences=setting.sequences,
        step_tokens=setting.options.step_tokens or 0,
        stages=memory,
        loading=loading,
        mapped=mapped_bytes(setting, memory),
        max_context=largest_context(setting),
        max_sequences=_sequences(setting),
        longest=largest_context(setting, sequences=setting.degrees.data),
        constraint=constraint(setting, memory),
        changes=() if fits else changes_of(setting, wishes),
        speed=speed,
        warnings=warnings_of(setting, speed, loading if loading and loading > memory[0].usable else 0),
        assumptions=assumptions_of(setting),
        setting=setting,
    )


def _sequences(setting: Setting) -> int:
    most = largest_sequences(setting)
    return min(most, MAX_SEQUENCES * setting.degrees.data) if setting.backend == FASTDEPLOY else most


def _processes(machine: Device, tensor: Degree, limit: int | None) -> tuple[Devices, int | None]:
    """Return what each process of a machine has that computes a part, and its part of the KV cache's bytes."""
    ranks = tensor if isinstance(tensor, int) and tensor > 1 else 1
    return shared_out(machine, ranks), None if limit is None else limit // ranks


def _backend(name: str, devices: Devices, backend_options: object | None) -> _Planned:
    if name == "auto":
        name = registry.foresee(LoadOptions(device=devices.device.kind, backend_options=backend_options))
    if name == FASTDEPLOY:
        if devices.device.kind == "cpu":
            raise UnsupportedError(
                "backend='fastdeploy': it has no cpu; use native, or name devices such as 'H100'"
            )
        there = name in registry.names()
        return _Planned(name, registry.get(name).estimate if there else accelerator_footprint, tuple(FORMATS))
    found = registry.get(name)
    return _Planned(name, found.estimate, registry.precisions(found) or (UNSAID,), found)


def _fixed_tensor(subject: Subject, wanted: Degree) -> Degree:
    """A checkpoint that lies cut for some devices runs on so many."""
    fixed = subject.cut_for
    if fixed is None or wanted in ("auto", fixed):
        return wanted if fixed is None else fixed
    raise UnsupportedError(
        f"tensor_parallel={wanted}: {subject.name} is cut for {fixed} devices; use {fixed} or 'auto'"
    )


def _context(subject: Subject, wanted: int | None) -> int:
    trained = subject.config.max_position_embeddings
    context = min(CONTEXT, trained) if wanted is None else wanted
    if context > trained:
        raise ArgumentError(
            f"max_context={context}: must lie in [1, {trained}], what the model was trained for"
        )
    return context
