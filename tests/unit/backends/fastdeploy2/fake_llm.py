"""Copied to a directory as ``fastdeploy/__init__.py``: behaves as FastDeploy 2.x does offline, side effects included.

What tests say goes through the environment: FAKE_SCENARIO, and FAKE_DELAY (seconds for each token). Tokens count up
from the last id of the prompt and end at a multiple of ten, or with "endless" never; ids 606, 608 and 609 in front of a
prompt end in errors, as a result, as nothing at all and as an exception, and 605 in silence.

Results in a stream hold the new tokens, with the log-probabilities of all so far. Answers are remembered until their
end was read; ``add_abort_req_ids`` ends them, but in the scenario "old" there is no such thing.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

__all__ = ["LLM", "ModelRegistry", "SamplingParams", "version"]
__version__ = "2.5.0"

SCENARIO = os.environ.get("FAKE_SCENARIO", "")
DELAY = float(os.environ.get("FAKE_DELAY", "0"))
LOGS = Path(os.environ.get("FD_LOG_DIR", "log"))
ARGUMENTS = {
    *(
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "tensor_parallel_size",
        "data_parallel_size",
    ),
    *(
        "enable_expert_parallel",
        "gpu_memory_utilization",
        "block_size",
        "num_gpu_blocks_override",
        "swap_space",
    ),
    *(
        "enable_prefix_caching",
        "quantization",
        "load_choices",
        "guided_decoding_backend",
        "speculative_config",
    ),
    *("engine_worker_queue_port", "graph_optimization_config"),
}

# what a bare import does
os.environ.update(GLOG_minloglevel="2", AISTUDIO_LOG="critical")
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="fake-prometheus-", dir="/tmp")
tempfile.mkdtemp(prefix="fake-fastdeploy-")
for handler in list(logging.getLogger().handlers):
    if isinstance(handler, logging.StreamHandler):
        logging.getLogger().removeHandler(handler)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    print(f"no attribute {name}")


version = __version__


class ModelRegistry:
    pass


@dataclass
class GuidedDecodingParams:
    json: Any = None
    regex: Any = None
    choice: Any = None
    grammar: Any = None
    json_object: Any = None
    structural_tag: Any = None


@dataclass
class SamplingParams:
    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 1
    seed: int | None = None
    stop: Any = None
    stop_token_ids: Any = None
    guided_decoding: GuidedDecodingParams | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.seed is None:
            self.seed = random.randint(0, 922337203685477580)
        if not 0 <= self.seed <= 922337203685477580:
            raise ValueError("seed must be in [0, 922337203685477580]")


class EngineError(Exception):
    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(message)
        self.error_code = error_code


class LogprobsLists(NamedTuple):
    logprob_token_ids: list[list[int]]
    logprobs: list[list[float]]
    sampled_token_ranks: list[int]


@dataclass
class CompletionOutput:
    index: int
    token_ids: list[int]
    text: str
    top_logprobs: LogprobsLists | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


@dataclass
class RequestOutput:
    request_id: str
    outputs: CompletionOutput | None
    finished: bool
    error_code: int = 200
    error_msg: str | None = None
    num_cached_tokens: int = 0
    prompt_token_ids: list[int] = field(default_factory=list)


class LLM:
    def __init__(
        self,
        model: str,
        revision: str = "master",
        tokenizer: str | None = None,
        enable_logprob: bool = False,
        chat_template: str | None = None,
        **engine_arguments: Any,
    ) -> None:
        unknown = set(engine_arguments) - ARGUMENTS
        if unknown:
            raise TypeError(f"unexpected arguments: {unknown}")
        LOGS.mkdir(parents=True, exist_ok=True)
        arguments = {"model": model, "enable_logprob": enable_logprob, **engine_arguments}
        note("llm", {**arguments, "pid": os.getpid(), "environment": seen()})
        self._longest = engine_arguments["max_model_len"]
        self._enable_logprob = enable_logprob
        self._aborted: set[str] = set()
        self.req_output: dict[str, int] = {}
        manager = SimpleNamespace() if SCENARIO == "old" else SimpleNamespace(add_abort_req_ids=self._abort)
        self.llm_engine = SimpleNamespace(engine=SimpleNamespace(resource_manager=manager))
        if SCENARIO == "raises":
            raise RuntimeError("Paddle operators were compiled for another commit")
        if SCENARIO == "exits":
            sys.exit(3)
        if SCENARIO == "hangs":
            time.sleep(3600)
        self._start()

    def _start(self) -> bool:
        """Through a shell, in a process group of its own; whether that worked is told to nobody."""
        fails = SCENARIO == "fails silently"
        code = "raise SystemExit('no kernel image')" if fails else "import time; time.sleep(3600)"
        command = f'{sys.executable} -c "{code}" > {LOGS}/workerlog.0 2>&1'
        workers = subprocess.Popen(command, shell=True, preexec_fn=os.setsid)
        weakref.finalize(self, os.killpg, workers.pid, signal.SIGTERM)
        time.sleep(0.3)
        if fails:
            workers.wait()
        note("workers", {"group": workers.pid})
        return not fails

    def _abort(self, request_id: str) -> None:
        note("abort", {"request": request_id})
        self._aborted.add(request_id)

    def generate(
        self, prompts: Any, sampling_params: Any = None, use_tqdm: bool = True, stream: bool = False
    ) -> Any:
        if isinstance(sampling_params, list):
            raise AttributeError("'list' object has no attribute 'n'")
        if not stream and not use_tqdm:
            raise UnboundLocalError("local variable 'num_requests' referenced before assignment")
        if isinstance(prompts, (str, dict)) or isinstance(prompts[0], int):
            prompts = [prompts]
        if SCENARIO == "gives no token":
            time.sleep(3600)
        streams = [self._one(self._add(prompt, sampling_params), sampling_params) for prompt in prompts]
        if stream:
            return self._streamed(streams)
        raise NotImplementedError("the adapter streams")

    def _add(self, prompt: Any, params: SamplingParams) -> dict[str, Any]:
        """The caller's own dictionary gets the name of the request."""
        task: dict[str, Any] = prompt if isinstance(prompt, dict) else {"prompt_token_ids": prompt}
        task["request_id"] = str(uuid.uuid4())
        ids = task["prompt_token_ids"]
        plain = json.loads(json.dumps(vars(params), default=vars))
        note("request", {"prompt": ids, "params": plain, "request": task["request_id"]})
        if ids[0] == 609:
            raise EngineError("input is too long", error_code=400)
        self.req_output[task["request_id"]] = 0
        return task

    def _streamed(
        self, streams: list[Iterator[RequestOutput | None]]
    ) -> Iterator[list[RequestOutput | None]]:
        live = dict(enumerate(streams))
        while live:
            news: list[RequestOutput | None] = [None] * len(streams)
            for index in list(live):
                output = next(live[index], STOP)
                if isinstance(output, Stop):
                    del live[index]
                else:
                    news[index] = output
            yield news
            yield [None] * len(streams)  # nothing new: that happens too
            time.sleep(DELAY)

    def _one(self, task: dict[str, Any], params: SamplingParams) -> Iterator[RequestOutput | None]:
        name, prompt = task["request_id"], task["prompt_token_ids"]
        if prompt[0] in (606, 608):
            yield RequestOutput(name, None, True, 500, "engine error") if prompt[0] == 606 else None
            return
        if prompt[0] == 605:
            time.sleep(3600)
        most = min(params.max_tokens or self._longest, self._longest - len(prompt))
        token, count = prompt[-1], 0
        rows = LogprobsLists([], [], [])
        while count < most and name not in self._aborted:
            token, count = token + 1, count + 1
            last = count == most or (token % 10 == 0 and SCENARIO != "endless")
            output = CompletionOutput(0, [token], f"<{token}>")
            if params.logprobs and self._enable_logprob:
                add_row(rows, token)
                output.top_logprobs = rows
            yield RequestOutput(name, output, last, num_cached_tokens=len(prompt) // 2)
            if last:
                break
        del self.req_output[name]
        note("read to its end", {"request": name, "left": len(self.req_output), "tokens": count})


class Stop:
    pass


STOP = Stop()


def add_row(rows: LogprobsLists, token: int) -> None:
    """The token itself, then the twenty most probable, of which it is the second."""
    top = [token + 1, token, *range(token + 2, token + 20)]
    rows.logprob_token_ids.append([token + (SCENARIO == "other tokens"), *top])
    rows.logprobs.append([-0.75, -0.5, -0.75, *(-1.0 - i for i in range(18))])
    rows.sampled_token_ranks.append(2)
    if SCENARIO == "few alternatives":
        del rows.logprob_token_ids[-1][2:], rows.logprobs[-1][2:]
    if SCENARIO == "logits":
        rows.logprobs[-1][0] = 12.5


def note(kind: str, what: dict[str, Any]) -> None:
    with (LOGS / "notes.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, **what}) + "\n")


def seen() -> dict[str, str | None]:
    names = ("INFERENCE_MSG_QUEUE_ID", "CUDA_VISIBLE_DEVICES", "FD_LOG_DIR", "PROMETHEUS_MULTIPROC_DIR")
    return {name: os.environ.get(name) for name in names}
