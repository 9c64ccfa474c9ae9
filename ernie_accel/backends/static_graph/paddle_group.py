"""A model divided among processes of ``paddle.distributed`` on this machine, as one ``Executor``.

Every process has a part of the weights (``ernie_accel/architecture/split.py``) and the same graph, in which partial
results are summed over the processes, by gloo on a CPU and by NCCL on GPUs. The cache of all of them is one, in memory
that all see: to the Runner the layers of rank 1 come after those of rank 0, so each rank reads its keys and values
where they lie. Logits come back in parts of the vocabulary and are put side by side.

A process that ends, or does not answer in time, ends the group: the call raises and no process is left.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_accel import env
from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.split import rank_config
from ernie_accel.backends.static_graph.executor import Array, ExecutorInfo
from ernie_accel.backends.static_graph.memory import SharedMemory
from ernie_accel.backends.static_graph.paddle_devices import rank_variables
from ernie_accel.backends.static_graph.paddle_settings import PaddleOptions, Target
from ernie_accel.backends.static_graph.worker import Worker
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.shard.view import RankView
from ernie_accel.errors import BackendError, BackendProcessError, ClosedError, ErnieAccelError
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import Fusions
from ernie_accel.types import Progress

__all__ = ["PaddleGroupExecutor", "group_signature", "write_parts"]

PROGRAM = ("-m", "ernie_accel.backends.static_graph.paddle_rank")
START_SECONDS = 120.0
BLAME_SECONDS = 1.0
"""How long a failed call waits for the process to show that ended first."""


def group_signature(signature: Signature, config: ModelConfig, ranks: int) -> Signature:
    """Return what the Runner is to think of the group: the caches of all ranks as layers of one."""
    heads = rank_config(config, ranks).num_key_value_heads
    return replace(signature, layers=ranks * config.num_hidden_layers, kv_heads=heads)


def write_parts(
    checkpoint: Checkpoint,
    ranks: int,
    target: Target,
    directory: Path,
    progress: Progress | None,
    fusions: Fusions,
) -> tuple[Signature, list[Path]]:
    """Write the program of every rank into a directory of its own; return their signature and the files."""
    from ernie_accel.export.paddle_file import write_graph

    programs = []
    for rank in range(ranks):
        part = RankView(checkpoint, ranks, rank)
        signature = Signature.of(part.config, target.precision)
        folder = directory / f"rank-{rank}"
        folder.mkdir()
        name = write_graph(
            part,
            signature,
            folder,
            progress,
            device=target.device,
            fusions=fusions,
            stage="load",
            ranks=ranks,
        )
        programs.append(folder / name)
    return signature, programs


class PaddleGroupExecutor:
    """Starts the processes and has them load their programs.

    Args:
        programs: One for each rank.
        signature: Of each of them.
        config: Of the whole model.
        targets: Where each of them computes.
        own: ``onednn``, ``gpu_memory`` and the seconds that loading and a step may take.

    Raises:
        BackendProcessError: A process ended, or the group did not come together in time.
        BackendError: Paddle refuses a program.
    """

    def __init__(
        self,
        programs: Sequence[Path],
        signature: Signature,
        config: ModelConfig,
        *,
        targets: Sequence[Target],
        own: PaddleOptions,
    ) -> None:
        self._signature, self._ranks, self._step_timeout = signature, len(programs), own.step_timeout
        self._vocab = config.vocab_size
        self._ended: ErnieAccelError | None = None
        self._scratch: dict[str, Array] = {}
        self.memory = SharedMemory()
        self._workers: list[Worker] = []
        try:
            for rank, environment in enumerate(_environments(targets)):
                name = f"rank {rank} of {self._ranks} of Paddle"
                worker = Worker(sys.executable, name, environment, program=PROGRAM, memory=self.memory)
                self._workers.append(worker)
            started = self._all(
                "join the group",
                min(START_SECONDS, own.load_timeout),
                [{"op": "start", "device": target.name} for target in targets],
            )
            self._all(
                "load its part",
                own.load_timeout,
                [
                    {
                        "op": "open",
                        "program": str(program),
                        "signature": signature.to_dict(),
                        "target": asdict(target),
                        "options": {"onednn": own.onednn, "gpu_memory": own.gpu_memory},
                    }
                    for program, target in zip(programs, targets, strict=True)
                ],
            )
        except BaseException:
            self.close()
            raise
        self._info = ExecutorInfo(
            engine=f"Paddle Inference {started[0]['version']}",
            empty_rows=False,
            empty_past=False,
            details={**_details(targets, own), "tensor_parallel": self._ranks},
        )

    @property
    def info(self) -> ExecutorInfo:
        """Fixed properties."""
        return self._info

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [worker.pid for worker in self._workers]

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory that all ranks see."""
        return self.memory.zeros(shape, dtype)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one step on all ranks. Raises BackendProcessError, then and ever after, once a process is gone."""
        s, (batch, width) = self._signature, inputs["ids"].shape
        common = {name: inputs[name] for name in ("positions", "lengths", "logit_rows", "hidden_rows")}
        shared = {name: self._shared(name, values) for name, values in common.items()}
        past = [(name, values) for name, values in inputs.items() if name.startswith("past_")]
        shape = (2 * s.layers * self._ranks, batch, s.kv_heads, width, s.head_dim)
        new = self._room("new", shape, np.dtype(s.cache_dtype))
        requests, logits, hidden = [], [], []
        for rank in range(self._ranks):
            mine = past[2 * s.layers * rank : 2 * s.layers * (rank + 1)]
            given = {
                "ids": self._shared(f"ids {rank}", self._local(inputs["ids"], rank)),
                **shared,
                **{
                    name: self._shared(known, values)
                    for name, (known, values) in zip(s.past_names, mine, strict=True)
                },
            }
            rows = (len(inputs["logit_rows"]), s.vocab_size), (len(inputs["hidden_rows"]), s.hidden_size)
            logits.append(self._room(f"logits {rank}", rows[0], np.float32))
            hidden.append(self._room(f"hidden {rank}", rows[1], np.float32))
            part = new[2 * s.layers * rank : 2 * s.layers * (rank + 1)]
            outputs = {"logits": logits[-1], "hidden": hidden[-1], "new": part}
            requests.append({"op": "run", "inputs": self._entries(given), "outputs": self._entries(outputs)})
        self._all("compute a step", self._step_timeout, requests)
        parts = [part[:, : s.vocab_size - 1] for part in logits]  # the last column is for tokens of others
        return {
            "logits": np.concatenate(parts, axis=1)[:, : self._vocab],
            "hidden": hidden[0].copy(),
            "new": new.copy(),
        }

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()
        self._scratch.clear()
        self.memory.close()

    def _all(self, what: str, seconds: float, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask every rank, wait for all; the first that fails ends the others."""
        if self._ended is not None:
            raise _again(self._ended)
        deadline = time.monotonic() + seconds
        answers: dict[int, dict[str, Any]] = {}
        try:
            for worker, request in zip(self._workers, requests, strict=True):
                worker.begin(what, **request)
            while len(answers) < self._ranks:
                waiting = [i for i in range(self._ranks) if i not in answers]
                left = max(0.0, deadline - time.monotonic())
                ready = self._ready(waiting, left)
                for i in waiting:
                    if i in ready or not ready:  # nobody is: the first is late
                        answers[i] = self._workers[i].finish(what, max(0.01, deadline - time.monotonic()))
        except ClosedError:
            raise
        except BackendError as error:
            cause = self._blame(what, error)
            self._ended = _again(cause)
            self.close()
            raise cause from None
        except BaseException:
            self.close()
            raise
        return [answers[i] for i in range(self._ranks)]

    def _ready(self, ranks: list[int], seconds: float) -> list[int]:
        """Of these ranks, those that have answered or ended."""
        try:
            found = select.select([self._workers[i] for i in ranks], [], [], seconds)[0]
            return [i for i in ranks if self._workers[i] in found]
        except ValueError:  # closed meanwhile by another thread
            raise ClosedError("the runner is closed; load the model again") from None

    def _blame(self, what: str, error: BackendError) -> BackendError:
        """The others fail because one is gone; say which, if it shows soon."""
        end = time.monotonic() + BLAME_SECONDS
        while not isinstance(error, BackendProcessError) and time.monotonic() < end:
            for worker in self._workers:
                if worker.ended:
                    try:
                        worker.finish(what, BLAME_SECONDS)
                    except BackendError as cause:
                        return cause
            time.sleep(0.02)
        return error

    def _local(self, ids: Array, rank: int) -> Array:
        """Tokens as rows of the rank's table; the last row, zeros, for those of other ranks."""
        rows = self._signature.vocab_size - 1
        local = ids - rank * rows
        return np.where((local >= 0) & (local < rows), local, rows)

    def _shared(self, name: str, values: Array) -> Array:
        """Return the array itself where the ranks see it, else a copy that they do see."""
        if self.memory.offset(values) is not None:
            return values
        copy = self._room(name, values.shape, values.dtype)
        copy[...] = values
        return copy

    def _room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return shared memory of that shape, which the next step may have too."""
        count = int(np.prod(shape, dtype=np.int64))
        held = self._scratch.get(name)
        if held is None or held.size < count:
            size = max(1, count, 0 if held is None else 2 * held.size)
            held = self._scratch[name] = self.memory.zeros((size,), dtype)
        return held[:count].reshape(shape)

    def _entries(self, arrays: Mapping[str, Array]) -> list[list[Any]]:
        return [
            [name, values.dtype.str, list(values.shape), self.memory.offset(values)]
            for name, values in arrays.items()
        ]


def _again(error: ErnieAccelError) -> ErnieAccelError:
    """The error of a group that has ended, made anew: one that is kept keeps what its traceback refers to."""
    if isinstance(error, BackendProcessError):
        return BackendProcessError(str(error), exit_code=error.exit_code, log=error.log)
    return BackendProcessError(f"the group has ended: {error}")


def _details(targets: Sequence[Target], own: PaddleOptions) -> Mapping[str, Any]:
    first = targets[0]
    if first.device == "gpu":
        return {"device": "gpu:" + ",".join(str(target.number) for target in targets)}
    return {"device": "cpu", "threads": first.threads, "onednn": own.onednn}


def _environments(targets: Sequence[Target]) -> list[dict[str, str]]:
    """What tells each process of the group which rank it is. Only the first address is listened at."""
    ranks = len(targets)
    with ExitStack() as stack:
        ports = []
        for _ in range(ranks):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    addresses = [f"127.0.0.1:{port}" for port in ports]
    return [
        env.inherited(
            {
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(ranks),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(addresses),
                "PADDLE_CURRENT_ENDPOINT": addresses[rank],
                **rank_variables(target),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
        )
        for rank, target in enumerate(targets)
    ]
