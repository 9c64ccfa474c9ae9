"""The backend named ``fastdeploy``: FastDeploy 2.x, in a process group of ours or on a server."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NoReturn

from ernie_accel import env
from ernie_accel.architecture.config import ModelConfig
from ernie_accel.backends.accelerator import accelerator_footprint
from ernie_accel.backends.base import Availability, Footprint, LoadOptions
from ernie_accel.backends.engine import Engine, EngineInfo
from ernie_accel.backends.fastdeploy import launch, machine, needs
from ernie_accel.backends.fastdeploy.names import MAX_SEED, QUANTIZATION
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.backends.preflight import Finding, Preflight
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError, BackendUnavailableError, ErnieAccelError, UnsupportedError
from ernie_accel.tokenizer.load import load_tokenizer

__all__ = ["FastDeployBackend"]

QUEUE_SIZE = 1024


class FastDeployBackend:
    """FastDeploy 2.x as an Engine."""

    name = "fastdeploy"
    precisions: tuple[str, ...] = tuple(QUANTIZATION)
    options_type = FastDeployOptions
    splits = True

    def available(self) -> Availability:
        """Say which of the two forms can run here: servers need an HTTP library, a group of ours the whole machine."""
        remote = _has_httpx()
        report = self._machine(LoadOptions(), FastDeployOptions())
        if report.ok:
            return Availability(True, "Runs on the GPUs of this machine, or talks to a server.")
        missing, step = " ".join(fault.found for fault in report.faults), report.faults[0].next_step
        if remote:
            here = "Talks to a server that runs already (FastDeployOptions(endpoint=...)), but can start none here:"
            return Availability(True, f"{here} {missing}", step)
        return Availability(
            False,
            f"Cannot run on this machine: {missing}",
            "To talk to a server elsewhere: pip install 'ernie-accel[remote]'.",
        )

    def available_for(self, options: LoadOptions) -> Availability:
        """Answer for the form that the options choose."""
        own = _own(options)
        if own.endpoint is not None:
            if _has_httpx():
                return Availability(True, "The HTTP library is installed.")
            return Availability(
                False,
                "Talking to a server needs httpx.",
                "Install it with: pip install 'ernie-accel[remote]'.",
            )
        report = self._machine(options, own)
        return Availability(report.ok, report.sentence() or "FastDeploy and its GPUs are there.")

    def estimate(self, config: ModelConfig, options: LoadOptions) -> Footprint:
        """What one GPU has to hold, by FastDeploy's documentation: it measures the rest when it starts."""
        degree = launch.parallel(options, _own(options), config)
        return accelerator_footprint(config, replace(options, tensor_parallel=degree))

    def preflight(
        self, directory: Path | None, config: ModelConfig | None, options: LoadOptions
    ) -> Preflight:
        """Look at everything that a start needs; with an endpoint, at the server alone."""
        own = _own(options)
        if own.endpoint is not None:
            return Preflight(self.name, (_http_finding(), *_server_findings(own)))
        report = self._machine(options, own)
        if directory is None or config is None:
            return report
        found = machine.used(machine.gpus(), _needed(options, own), _named(options, own))
        more = needs.checkpoint_findings(directory, config, options, own, found)
        return Preflight(self.name, (*report.findings, *more))

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> NoReturn:
        """Raise UnsupportedError: FastDeploy works on whole requests."""
        raise UnsupportedError(
            "backend 'fastdeploy' works on whole requests: it has open_engine in place of open"
        )

    def reads_weights(self, options: LoadOptions) -> bool:
        """A group of ours does; a server has its own."""
        return _own(options).endpoint is None

    def open_engine(self, directory: Path | None, config: ModelConfig | None, options: LoadOptions) -> Engine:
        """Start a process group, or look at a server and its models.

        Raises:
            ArgumentError, UnsupportedError: A setting can never work, or cannot be said.
            BackendUnavailableError: What ``preflight`` looks at is not as it must be; the server is not ready.
            BackendProcessError: The process group failed, or was not ready in time.
            RemoteError: The server refuses the key, or is none of the OpenAI API.
        """
        own = _own(options)
        if own.endpoint is not None:
            return self._remote(directory, config, options, own)
        if directory is None or config is None:
            raise ArgumentError(
                "backend 'fastdeploy' reads the files of a checkpoint: give a directory or a hub id, or the endpoint "
                "of a server: FastDeployOptions(endpoint=...)"
            )
        return self._group(directory, config, options, own)

    def _machine(self, options: LoadOptions, own: FastDeployOptions) -> Preflight:
        found = machine.packages(own.python, own.environment)
        packages = needs.package_findings(found, guided=own.guided_decoding)
        gpus = needs.machine_findings(machine.gpus(), _needed(options, own), _named(options, own))
        return Preflight(self.name, tuple(chain(gpus, packages, needs.version_findings(found, options, own))))

    def _group(
        self, directory: Path, config: ModelConfig, options: LoadOptions, own: FastDeployOptions
    ) -> Engine:
        from ernie_accel.backends.fastdeploy.group_engine import GroupEngine, start

        arguments = launch.engine_arguments(directory.resolve(), config, options, own)
        report = self.preflight(directory, config, options)
        if not report.ok:
            raise BackendUnavailableError(f"FastDeploy cannot start here. {report.sentence()}")
        probe = [config.bos_token_id or 0]
        visible = launch.devices(options.device).visible
        group, ready = start(own, arguments, probe, visible, options.progress)
        info = EngineInfo(
            backend=self.name,
            vocab_size=config.vocab_size,
            max_context=arguments["max_model_len"],
            precision=_precision(directory, options, own),
            kv_precision="bf16",
            max_sequences=arguments["max_num_seqs"],
            capabilities=frozenset({"structure"}),
            details={
                **{"fastdeploy": ready["version"], "stops_cancelled": ready["stops"]},
                **{"pid": group.pid, "logs": str(group.logs), **arguments},
            },
            max_seed=MAX_SEED["fastdeploy"],
        )
        return GroupEngine(
            group,
            info,
            concurrency=arguments["max_num_seqs"],
            queue_size=_queue_size(options),
            guided=own.guided_decoding,
            logprobs=own.logprobs,
            patience=own.read_timeout,
        )

    def _remote(
        self, directory: Path | None, config: ModelConfig | None, options: LoadOptions, own: FastDeployOptions
    ) -> Engine:
        from ernie_accel.backends.fastdeploy.remote_engine import connect

        launch.check_remote(options)
        tokenizer = load_tokenizer(directory) if own.logprobs and directory is not None else None
        return connect(config, options, own, queue_size=_queue_size(options), tokenizer=tokenizer)


def _own(options: LoadOptions) -> FastDeployOptions:
    given = options.backend_options
    if given is None:
        return FastDeployOptions()
    if not isinstance(given, FastDeployOptions):
        raise ArgumentError(f"backend_options={given!r}: backend 'fastdeploy' takes FastDeployOptions")
    return given


def _needed(options: LoadOptions, own: FastDeployOptions) -> int:
    """How many GPUs a start takes on this machine."""
    return launch.here(launch.parallel(options, own, None), own)


def _named(options: LoadOptions, own: FastDeployOptions) -> tuple[int, ...] | None:
    """Numbers of the GPUs that it may take, None for all; names that are no numbers cannot be looked up."""
    named = launch.devices(options.device).indices
    if named is not None:
        return named
    variables = env.inherited(own.environment, interpreter=own.python or sys.executable)
    parts = variables.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(map(int, parts)) if all(part.strip().isdecimal() for part in parts) else None


def _precision(directory: Path, options: LoadOptions, own: FastDeployOptions) -> str:
    stored = needs.stored_quantization(directory)
    return stored or own.quantization or ("bf16" if options.precision == "auto" else options.precision)


def _queue_size(options: LoadOptions) -> int:
    return QUEUE_SIZE if options.engine is None else options.engine.queue_size


def _has_httpx() -> bool:
    return importlib.util.find_spec("httpx") is not None


def _http_finding() -> Finding:
    there = _has_httpx()
    return Finding(
        "http",
        there,
        "httpx is installed." if there else "httpx is not installed.",
        "" if there else "Install it with: pip install 'ernie-accel[remote]'.",
    )


def _server_findings(own: FastDeployOptions) -> tuple[Finding, ...]:
    """Whether the server is ready and has the model; nothing without an HTTP library."""
    if not _has_httpx():
        return ()
    from ernie_accel.backends.fastdeploy.remote_engine import find_model

    try:
        model = find_model(own)
    except ErnieAccelError as error:
        return (Finding("server", False, f"{error}."),)
    return (Finding("server", True, f"{own.endpoint} is ready and has the model {model['id']!r}."),)
