"""What a plan warns of, and what its figures rest on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ernie_accel.backends.accelerator import MAX_SEQUENCES
from ernie_accel.display import size
from ernie_accel.planner.degrees import tensor_degrees
from ernie_accel.planner.devices import Devices, shared_out
from ernie_accel.planner.memory import device_memory
from ernie_accel.planner.processors import measured, reach_of
from ernie_accel.planner.setting import Setting
from ernie_accel.planner.speed import Speed, efficiency_of, speed_of

__all__ = ["assumptions_of", "warnings_of"]

_WORTH = 0.25
"""Gain below which twice the devices are worth a warning."""


def warnings_of(setting: Setting, speed: Speed, loading: int = 0) -> tuple[str, ...]:
    """Return what would surprise, one sentence each; ``loading`` is what it takes where that is more than there is."""
    kinds = (
        _loading(loading),
        _splitting(setting, speed),
        _heads(setting),
        _fastdeploy(setting),
        _unused(setting),
    )
    return tuple(sentence for kind in kinds for sentence in kind)


def _loading(peak: int) -> Iterator[str]:
    if peak:
        yield f"Loading takes {size(peak)} at its peak, more than is available."


def _splitting(setting: Setting, speed: Speed) -> Iterator[str]:
    """Say where fewer devices would be as fast."""
    tensor = setting.degrees.tensor
    if tensor == 1:
        return
    fewer = [n for n in tensor_degrees(setting.subject.config, tensor - 1) if tensor % n == 0]
    step = speed.step
    for smaller in reversed(fewer):
        other = replace(
            setting,
            devices=_shared(setting.devices, smaller),
            degrees=replace(setting.degrees, tensor=smaller),
        )
        memory = device_memory(other)
        there = speed_of(other, memory)
        gain = speed.per_sequence / there.per_sequence - 1
        fits = all(stage.fits for stage in memory)
        if gain >= _WORTH or (gain >= 0 and not fits):
            return
        verdict = "is slower than" if gain < 0 else f"is only {gain:.0%} faster than"
        why = (
            ""
            if fits
            else f", which does not fit (it needs {size(max(m.required for m in memory))} a device)"
        )
        yield (
            f"Tensor parallel {tensor} {verdict} {smaller}: {speed.per_sequence:.0f} and {there.per_sequence:.0f} "
            f"tokens/s for each sequence{why}; of a step of {1e3 * step.seconds:.2f} ms, "
            f"{1e3 * step.communication:.2f} ms are exchanges and {1e3 * max(step.memory, step.arithmetic):.2f} ms are "
            f"work that more devices divide."
        )
        return


def _shared(devices: Devices, ranks: int) -> Devices:
    """Parts of one machine are larger where there are fewer of them."""
    return devices if devices.whole is None else shared_out(devices.whole, ranks)


def _heads(setting: Setting) -> Iterator[str]:
    heads, tensor = setting.subject.config.num_key_value_heads, setting.degrees.tensor
    if tensor > heads:
        yield (
            f"Tensor parallel {tensor} is more than the {heads} key and value heads: each of them lies on "
            f"{tensor // heads} devices, so the KV cache takes {tensor // heads} times its bytes."
        )


def _fastdeploy(setting: Setting) -> Iterator[str]:
    if setting.backend != "fastdeploy":
        return
    degrees = setting.degrees
    if degrees.pipeline > 1:
        yield "FastDeploy 2.x documents no pipeline parallelism for ERNIE 4.5: this plan is for another engine."
    if degrees.expert > 1 and degrees.tensor > 1:
        yield "FastDeploy 2.x documents expert parallelism with tensor parallel 1 only."
    if setting.sequences_of_copy > MAX_SEQUENCES:
        yield f"FastDeploy 2.x decodes at most {MAX_SEQUENCES} sequences together; more wait."
    if setting.precision in ("w4a8", "int2") and setting.subject.stored is None:
        yield (
            f"FastDeploy 2.x does not quantize to {setting.precision} while loading: it needs a checkpoint that lies "
            "so, and only those of 300B-A47B are published."
        )


def _unused(setting: Setting) -> Iterator[str]:
    left = setting.devices.count - setting.degrees.devices
    if left:
        yield (
            f"{left} of {setting.devices.count} devices are not used: more would not give a tenth more tokens/s for "
            f"{setting.sequences} sequence{'s' if setting.sequences > 1 else ''}, or the model does not divide."
        )


def assumptions_of(setting: Setting) -> tuple[str, ...]:
    """Return what nobody published or measured here, one sentence each."""
    notes = [*(_on_processors(setting) if setting.on_cpu else _on_accelerators(setting))]
    if setting.precision == "int2":
        notes.append(
            "Two-bit experts take 2.1 bits a weight, from the published size of the 300B checkpoint."
        )
    if setting.subject.extras:
        notes.append("The vision transformer lies whole and in 16 bits on every device of the first stage.")
    if setting.subject.config.num_nextn_predict_layers and not setting.mtp:
        notes.append("Weights of multi-token prediction are not loaded; mtp=True (--mtp) counts them.")
    return tuple(notes)


def _on_processors(setting: Setting) -> Iterator[str]:
    """Say what speed rests on: the machine, and what the engine reaches of it."""
    device, reached = setting.devices.device, reach_of(setting.backend, setting.precision)
    how = (
        "measured now"
        if device.measured
        else "assumed for so many threads; probe=True measures it, as ernie-accel plan does without --no-probe"
    )
    yield f"Read bandwidth {device.bandwidth / 1e9:.0f} GB/s and {device.tera8:.2f} TOPS in int8, {how}."
    name = setting.backend
    origin = (
        f"Of bandwidth and arithmetic {name} in {setting.precision}"
        if measured(name, setting.precision)
        else f"{name} in {setting.precision} was never measured: a guess is that of bandwidth and arithmetic it"
    )
    yield (
        f"{origin} reaches {reached.bandwidth:.0%} and {reached.arithmetic:.0%}, and while it takes a weight out of "
        f"its format {reached.rows:.1f} rows could be multiplied; attention of single tokens reaches {reached.one:.1%} "
        f"of the int8 arithmetic, that of prompts {reached.many:.0%}; a step loses {1e3 * reached.step:.2f} ms and "
        f"{1e3 * reached.sequence:.2f} ms for each sequence: fitted to 0.3B on a Zen 5 processor with AVX-512."
    )
    if setting.degrees.tensor > 1:
        link, ranks = device.link, setting.degrees.tensor
        yield (
            f"A sum over {ranks} processes takes {1e3 * link.all_reduce(0, ranks):.2f} ms and its bytes at "
            f"{link.bandwidth / 1e9:.1f} GB/s: fitted to gloo between two of Paddle's."
        )


def _on_accelerators(setting: Setting) -> Iterator[str]:
    reached = efficiency_of(setting)
    yield (
        "Of each device 1 GiB is counted for context, kernels and workspaces, and 256 MiB for exchanges where "
        "there are several; bandwidth and arithmetic are those of its data sheet."
    )
    host = f", {1e3 * reached.step:.1f} ms of scheduling a step" if reached.step else ""
    yield (
        f"To expect are {reached.bandwidth:.0%} of bandwidth and {reached.arithmetic:.0%} of arithmetic, "
        f"{1e6 * reached.layer:.0f} us lost a layer{host}: fitted to published figures of other models."
    )
