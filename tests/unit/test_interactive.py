"""Ctrl-C where people type: a Python prompt in a terminal, and a cell of a notebook."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

SETUP = """
import threading, time
import ernie_accel as ea
from ernie_accel.backends.mock import MockOptions
from ernie_accel.testing import synthetic, tiny_config
options = MockOptions(reply=[7], step_seconds=0.05)
model = ea.Model.load(synthetic(tiny_config()), backend="mock", backend_options=options, progress=False)
def tell():
    while not model.metrics().gauges["running"]: time.sleep(0.005)
    print("under", "way", flush=True)

def ask():
    threading.Thread(target=tell).start()
    return model.generate([1], max_tokens=250, ignore_eos=True)

def iterate():
    threading.Thread(target=tell).start()
    return [chunk for chunk in model.stream([1], max_tokens=250, ignore_eos=True)]

def idle():
    while model.metrics().gauges["running"]: time.sleep(0.005)
    return len(model.generate([1], max_tokens=3, ignore_eos=True).token_ids), model.metrics().gauges["running"]
"""
ASK = ("ask()", "iterate()")
AFTER = "print('after', *idle())"
SAID = "after 3 0"
PATIENCE = 60.0

TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, [sys.executable, '-q'])"
)
"""Takes standard input for its terminal, so that a character typed there is a signal, and becomes a Python prompt.

Processes that were started in the background ignore Ctrl-C, and so would what they start.
"""


class Prompt:
    """A Python prompt in a terminal of its own."""

    def __init__(self) -> None:
        import pty

        self._seen = ""
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", TERMINAL],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, words: str) -> str:
        """Read up to some words; return what comes before them."""
        end = time.monotonic() + PATIENCE
        while words not in self._seen:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{words!r} did not come: {self._seen}"
            self._seen += os.read(self._ours, 4096).decode(errors="replace")
        before, _, self._seen = self._seen.partition(words)
        return before

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def prompt() -> Iterator[Prompt]:
    pytest.importorskip("termios", reason="needs terminals")
    made = Prompt()
    yield made
    made.close()


def test_at_a_python_prompt(prompt: Prompt) -> None:
    prompt.until(">>> ")
    prompt.type(f"exec({SETUP!r})\n")
    prompt.until(">>> ")
    for call in ASK:
        prompt.type(f"{call}\n")
        prompt.until("under way")
        prompt.type("\x03")
        assert "Traceback" in prompt.until("KeyboardInterrupt")
        prompt.until(">>> ")
        prompt.type(f"{AFTER}\n")
        prompt.until(SAID)
        prompt.until(">>> ")


@pytest.fixture
def kernel() -> Iterator[tuple[Any, Any]]:
    jupyter = pytest.importorskip("jupyter_client.manager", reason="needs jupyter_client")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    manager, client = jupyter.start_new_kernel(startup_timeout=PATIENCE)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_in_a_notebook(kernel: tuple[Any, Any]) -> None:
    manager, client = kernel
    assert client.execute_interactive(SETUP, timeout=PATIENCE)["content"]["status"] == "ok"
    for call in ASK:
        request = client.execute(call)
        wait_for_text(client, "under way")
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=PATIENCE)
        assert reply["parent_header"]["msg_id"] == request
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        client.execute(AFTER)
        wait_for_text(client, SAID)
        assert client.get_shell_msg(timeout=PATIENCE)["content"]["status"] == "ok"


def wait_for_text(client: Any, words: str) -> None:
    seen = ""
    while words not in seen:
        seen += client.get_iopub_msg(timeout=PATIENCE)["content"].get("text", "")
