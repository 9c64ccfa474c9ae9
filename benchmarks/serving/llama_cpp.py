"""llama.cpp serving several requests at a time, in a process of its own: requests join and leave at every step.

Started as ``python -m benchmarks.serving.llama_cpp SHAPE PRECISION THREADS SLOTS ROOM``; says ``{}`` once the model is
loaded, then reads a JSON request a line, ``{"kind", "count", "seed", "slots"}``, and answers with the seconds it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..end_to_end.peers.base import Setup
from ..end_to_end.peers.llama import UBATCH, Llama, load
from .work import Item, items


@dataclass
class Slot:
    """A sequence of the KV cache, and what it is working on."""

    sequence: int
    item: Item
    read: int = 0
    written: int = 0
    last: int = 0

    def next_ids(self, room: int) -> Sequence[int]:
        """What it would put into the next batch."""
        if self.written:
            return [self.last]
        return self.item.prompt[self.read : self.read + room]


class Server:
    """Continuous batching over ``llama_decode``: next tokens first, then prompts up to the size of a batch."""

    def __init__(self, engine: Llama) -> None:
        self._engine = engine

    def serve(self, work: Sequence[Item], slots: int) -> None:
        """Work through all requests, at most ``slots`` at a time."""
        self._engine.clear()
        left, free = list(reversed(work)), list(range(slots))
        active: list[Slot] = []
        while left or active:
            while left and free:
                active.append(Slot(free.pop(), left.pop()))
            self._step(active)
            for slot in [slot for slot in active if slot.written == slot.item.tokens]:
                active.remove(slot)
                self._engine.forget(slot.sequence)
                free.append(slot.sequence)

    def _step(self, active: Sequence[Slot]) -> None:
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[bool] = []
        drawing: list[tuple[Slot, int]] = []
        for slot in sorted(active, key=lambda slot: slot.written == 0):
            more = slot.next_ids(UBATCH - len(ids))
            if not more:
                continue
            ids += more
            positions += range(slot.read, slot.read + len(more))
            sequences += [slot.sequence] * len(more)
            slot.read += len(more)
            answers = slot.read >= len(slot.item.prompt)
            wanted += [False] * (len(more) - 1) + [answers]
            if answers:
                drawing.append((slot, len(ids) - 1))
        self._engine.decode(ids, np.array(positions), np.array(sequences), np.array(wanted))
        for slot, row in drawing:
            slot.last = self._engine.best(row)
            slot.written += 1


def main(shape: str, precision: str, threads: str, slots: str, room: str) -> None:
    """Load and answer. Whatever llama.cpp prints goes to standard error, so that answers stay readable."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = Setup(shape=shape, precision=precision, threads=int(threads), context=int(room), batch=int(slots))
    server = Server(load(setup, unified=True))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        work = items(request["kind"], request["count"], request["seed"])
        begin = time.perf_counter()
        server.serve(work, request["slots"])
        print(json.dumps({"seconds": time.perf_counter() - begin}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
