"""What is FastDeploy's own: ``Model.load(backend_options=FastDeployOptions(...))``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from ernie_accel.errors import ArgumentError

__all__ = ["Dialect", "FastDeployOptions", "Loader"]

Dialect = Literal["fastdeploy", "openai"]
"""Which fields a server understands beside those of the OpenAI API."""

Loader = Literal["auto", "default_v1", "default", "dummy"]

_REMOTE = (
    *("model", "api_key", "dialect", "connect_timeout", "retries", "proxy", "ca_file", "metrics_endpoint"),
)
_GROUP = (
    *("python", "data_parallel", "expert_parallel", "memory_utilization", "block_size", "host_cache"),
    *("quantization", "loader", "start_timeout", "log_directory", "engine_arguments", "environment"),
)


@dataclass(frozen=True, kw_only=True)
class FastDeployOptions:
    """Settings of the backend ``fastdeploy``.

    Without ``endpoint`` a process group of our own runs FastDeploy's ``LLM`` on the GPUs of this machine; with it, a
    server that runs already answers, FastDeploy's or any other with the OpenAI API.

    Attributes:
        endpoint: Of a server, such as ``"http://localhost:8188"``.
        guided_decoding: Outputs with a structure are allowed. Of a server: it was started with
            ``--guided-decoding-backend`` (without, a request with a structure has crashed workers, so none is sent).
        logprobs: ``SamplingParams(logprobs=)`` is allowed; every token costs more then, also of requests without. Of a
            server: it was started with ``--enable-logprob``.
        read_timeout: Seconds without anything new after which an answer has failed.
        model: Name under which the server has the model; None takes the only one.
        api_key: Sent as bearer token; shown nowhere.
        dialect: ``"openai"`` for servers that know nothing beyond the OpenAI API.
        connect_timeout: Seconds for a connection, and for each look at the server's health.
        retries: How often a call is made again that the server has not begun: no connection, 429, 503.
        proxy: URL of a proxy; those of the environment are not used.
        ca_file: Certificates to trust in place of the system's.
        metrics_endpoint: Where ``/metrics`` is, if not on ``endpoint``.
        python: The interpreter that has FastDeploy, which is best kept in an environment of its own; None: this one.
        data_parallel: Copies of the model, each on as many GPUs as ``tensor_parallel`` says.
        expert_parallel: Experts are spread over the copies instead of being in each.
        memory_utilization: Share of each GPU's memory that FastDeploy may fill.
        block_size: Tokens of one block of its KV cache.
        host_cache: Bytes of main memory for KV blocks that do not fit the GPU; None: none.
        quantization: FastDeploy's own name, for what ``precision`` cannot say (``"wint2"``, ``"w4a8"``).
        loader: How it reads weights; ``"dummy"`` makes random ones.
        start_timeout: Seconds until it must be ready.
        log_directory: Where its logs go; None: a temporary directory, kept only after a failure.
        engine_arguments: Further arguments of its engine by FastDeploy's names; those with a name of ours are refused.
        environment: Further environment variables of the process group.
    """

    endpoint: str | None = None
    guided_decoding: bool = False
    logprobs: bool = False
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    dialect: Dialect = "fastdeploy"
    connect_timeout: float = 5.0
    read_timeout: float = 120.0
    retries: int = 3
    proxy: str | None = None
    ca_file: str | None = None
    metrics_endpoint: str | None = None
    python: str | None = None
    data_parallel: int = 1
    expert_parallel: bool = False
    memory_utilization: float = 0.9
    block_size: int = 64
    host_cache: int | None = None
    quantization: str | None = None
    loader: Loader = "auto"
    start_timeout: float = 1800.0
    log_directory: str | None = None
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("endpoint", "metrics_endpoint"):
            if getattr(self, name) is not None:
                _check_url(name, getattr(self, name))
        for name, allowed in (("dialect", get_args(Dialect)), ("loader", get_args(Loader))):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        for name in ("guided_decoding", "logprobs", "expert_parallel"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: must be True or False")
        for name in ("connect_timeout", "read_timeout", "start_timeout"):
            _check_seconds(name, getattr(self, name))
        for name, low in (("retries", 0), ("data_parallel", 1), ("block_size", 1)):
            _check_count(name, getattr(self, name), low)
        if self.host_cache is not None:
            _check_count("host_cache", self.host_cache, 1)
        if not _is_number(self.memory_utilization) or not 0 < self.memory_utilization <= 1:
            raise ArgumentError(
                f"memory_utilization={self.memory_utilization!r}: must be above 0 and at most 1"
            )
        for name in ("model", "api_key", "proxy", "ca_file", "python", "quantization", "log_directory"):
            if not isinstance(getattr(self, name), (str, type(None))):
                shown = "" if name == "api_key" else f"={getattr(self, name)!r}"
                raise ArgumentError(f"{name}{shown}: must be a string, or None")
        _check_mappings(self.engine_arguments, self.environment)
        self._check_form()

    def _check_form(self) -> None:
        """Refuse settings that mean nothing in the form that was chosen."""
        foreign = _REMOTE if self.endpoint is None else _GROUP
        given = [item.name for item in fields(self) if item.name in foreign and not self._is_default(item)]
        if given and self.endpoint is None:
            raise ArgumentError(f"{', '.join(given)}: belong to a server; give its endpoint too")
        if given:
            raise ArgumentError(
                f"{', '.join(given)}: say how a process group of ours starts, and the server at {self.endpoint} runs "
                "already; leave them out"
            )

    def _is_default(self, item: Any) -> bool:
        default = {} if item.name in ("engine_arguments", "environment") else item.default
        return bool(getattr(self, item.name) == default)


def _check_url(name: str, value: object) -> None:
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"{name}={value!r}: must be a URL such as 'http://localhost:8188'")
    if parts.username is not None or parts.password is not None:
        raise ArgumentError(f"{name}: holds a user or password; give api_key instead")


def _check_seconds(name: str, value: object) -> None:
    if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ArgumentError(f"{name}={value!r}: must be a number of seconds above 0")


def _check_mappings(arguments: object, environment: object) -> None:
    """What travels to another process has to be of the kinds that do."""
    if not isinstance(environment, Mapping) or not all(
        isinstance(part, str) for item in environment.items() for part in item
    ):
        raise ArgumentError(f"environment={environment!r}: must map names to strings")
    try:
        json.dumps(dict(arguments))  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"engine_arguments={arguments!r}: must map names to what JSON can say: {error}"
        ) from error


def _check_count(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ArgumentError(f"{name}={value!r}: must be a whole number of at least {low}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
