"""Ways to serve the same requests with our model, driven as a user drives it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ernie_accel as ea

from .work import Item


@dataclass
class Served:
    """What one request saw.

    Attributes:
        arrived: When it came, seconds from the start.
        times: When each of its tokens could be read.
    """

    arrived: float
    times: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds from arrival to the first token."""
        return self.times[0] - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def settings(item: Item) -> dict[str, Any]:
    """Greedy, so many tokens, whatever they are."""
    return {"max_tokens": item.tokens, "temperature": 0, "ignore_eos": True}


def one_by_one(model: ea.Model, work: Sequence[Item]) -> None:
    """Serve each when the one before has ended."""
    for item in work:
        model.generate(list(item.prompt), **settings(item))


def in_batches(model: ea.Model, work: Sequence[Item], size: int) -> None:
    """Serve batches that begin together; the next begins when all of the last have ended."""
    for at in range(0, len(work), size):
        handles = [model.submit(list(item.prompt), **settings(item)) for item in work[at : at + size]]
        for handle in handles:
            handle.result()


def continuously(model: ea.Model, work: Sequence[Item], clients: int) -> None:
    """Serve as many at a time as there are clients: threads that take the next request when their last has ended."""
    left = iter(work)
    taking = threading.Lock()

    def client() -> None:
        while True:
            with taking:
                item = next(left, None)
            if item is None:
                return
            model.generate(list(item.prompt), **settings(item))

    _threads([client] * clients)


def on_arrival(model: ea.Model, work: Sequence[Item], times: Sequence[float]) -> list[Served]:
    """Serve requests when they come, each read by a thread of its own."""
    start = time.perf_counter()

    def client(item: Item, served: Served) -> None:
        _sleep_until(start + served.arrived)
        _read(model, item, served, start)

    all_served = [Served(at) for at in times]
    _threads([lambda i=i, s=s: client(i, s) for i, s in zip(work, all_served, strict=True)])  # type: ignore[misc]
    return all_served


def first_come_first_served(
    model: ea.Model, work: Sequence[Item], times: Sequence[float], size: int
) -> list[Served]:
    """Serve batches of those that have come, at most ``size``, in their order; the rest wait until all have ended."""
    start = time.perf_counter()
    all_served = [Served(at) for at in times]
    at = 0
    while at < len(work):
        _sleep_until(start + times[at])
        now = time.perf_counter() - start
        come = [index for index in range(at, min(at + size, len(work))) if times[index] <= now]
        _threads(
            [lambda i=index: _read(model, work[i], all_served[i], start) for index in come]  # type: ignore[misc]
        )
        at += len(come)
    return all_served


def _read(model: ea.Model, item: Item, served: Served, start: float) -> None:
    for _ in model.stream(list(item.prompt), **settings(item)):
        served.times.append(time.perf_counter() - start)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _threads(bodies: Sequence[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
