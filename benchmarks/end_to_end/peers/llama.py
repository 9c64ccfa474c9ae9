"""llama.cpp through the C functions of llama-cpp-python: one batch of tokens a call, several sequences in it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.testing import synthetic

from ..formats.cache import size
from ..formats.gguf_file import gguf_model
from .base import Ids, Setup

UBATCH = 512
ERROR = 4  # a level of ggml's log


class Llama:
    def __init__(self, context: Any, setup: Setup, weight_bytes: int, log: Any) -> None:
        import llama_cpp

        self._llama = llama_cpp
        self._context = context
        self._log = log  # llama.cpp keeps the address alone
        with synthetic(setup.shape) as checkpoint:
            self._config = checkpoint.config
        self._weight_bytes = weight_bytes
        self._batch = llama_cpp.llama_batch_init(UBATCH, 0, 1)
        self._last: list[int] = []
        self._length = 0

    def prefill(self, prompt: Ids) -> int:
        self.clear()
        return self._read(prompt, 0)

    def start(self, prompts: Sequence[Ids], steps: int) -> None:
        self.clear()
        self._last = [self._read(prompt, sequence) for sequence, prompt in enumerate(prompts)]
        self._length = len(prompts[0])

    def advance(self, steps: int) -> None:
        count = len(self._last)
        sequences = np.arange(count)
        for _ in range(steps):
            self.decode(self._last, np.full(count, self._length), sequences, np.ones(count))
            self._last = [self.best(row) for row in range(count)]
            self._length += 1

    def step_bytes(self) -> int | None:
        c = self._config
        if c.moe_num_experts:
            return None
        entries = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        return self._weight_bytes + 2 * entries * self._length * len(self._last)  # the cache holds float16

    def clear(self) -> None:
        """Forget all sequences."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)

    def _read(self, prompt: Ids, sequence: int) -> int:
        for at in range(0, len(prompt), UBATCH):
            part = prompt[at : at + UBATCH]
            wanted = np.zeros(len(part))
            wanted[-1] = at + len(part) == len(prompt)
            self.decode(part, np.arange(at, at + len(part)), np.full(len(part), sequence), wanted)
        return self.best(len(part) - 1)

    def forget(self, sequence: int) -> None:
        """Empty one sequence."""
        self._llama.llama_memory_seq_rm(self._llama.llama_get_memory(self._context), sequence, -1, -1)

    def decode(self, ids: Ids, positions: Any, sequences: Any, wanted: Any) -> None:
        """Compute one batch: ids with their positions and sequences, and whether each is answered."""
        batch = self._batch
        batch.n_tokens = len(ids)
        _view(batch.token, len(ids), np.int32)[:] = ids
        _view(batch.pos, len(ids), np.int32)[:] = positions
        _view(batch.logits, len(ids), np.int8)[:] = wanted
        for i in range(len(ids)):
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = int(sequences[i])
        if self._llama.llama_decode(self._context, batch):
            raise SystemExit("error: llama_decode failed")

    def best(self, row: int) -> int:
        """Return the most probable token after entry ``row`` of the last batch."""
        logits = self._llama.llama_get_logits_ith(self._context, row)
        return int(_view(logits, self._config.vocab_size, np.float32).argmax())


def _view(pointer: Any, count: int, dtype: Any) -> npt.NDArray[Any]:
    return np.ctypeslib.as_array(
        ctypes.cast(pointer, ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype))), (count,)
    )


def _log_errors_only() -> Any:
    """A callback for llama.cpp's log, which else says a hundred lines about each file."""
    import llama_cpp

    def log(level: int, text: bytes, data: Any) -> None:
        if level == ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    return llama_cpp.llama_log_callback(log)


def load(setup: Setup, *, unified: bool = False) -> Llama:
    """Load a model; ``unified`` lets sequences of different lengths share one KV buffer, and so one batch."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    log = _log_errors_only()
    llama_cpp.llama_log_set(log, None)
    file = gguf_model(setup.shape, setup.precision)
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"error: llama.cpp does not load {file}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = (setup.context + 255) // 256 * 256 * setup.batch
    options.n_batch = options.n_ubatch = UBATCH
    options.n_seq_max = setup.batch
    options.kv_unified = unified
    options.n_threads = options.n_threads_batch = setup.threads
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise SystemExit("error: llama.cpp has no memory for that context")
    return Llama(context, setup, size(file), log)
