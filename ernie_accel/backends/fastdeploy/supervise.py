"""A program of its own: starts another one and, when that ends or its own parent does, leaves no process behind.

    python supervise.py SOCKET GRACE SCRATCH HOME COMMAND...

SOCKET is the number of an open file that COMMAND inherits; standard input is a pipe that the parent holds open as long
as it wants the group to live; after its end COMMAND has GRACE seconds to end by itself, none where a byte came first.
The directory SCRATCH is deleted at the end; HOME, which the parent deletes, where that is no more.
Whatever COMMAND starts, in whatever group or session, is a descendant of this process, which makes itself the one to
which orphans are given. Needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
LOOK_SECONDS = 0.5
KILLING_SECONDS = 20.0


def main() -> int:
    """Return the exit code of the command; 128 plus the signal that ended it."""
    handed, grace = int(sys.argv[1]), float(sys.argv[2])
    scratch, home, command = sys.argv[3], sys.argv[4], sys.argv[5:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    parent = os.getppid()
    worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[handed], start_new_session=True)
    os.close(handed)
    code: int | None = None
    lifeline = True
    end = float("inf")
    while code is None and time.monotonic() < end:
        ready, _, _ = select.select([0, woken] if lifeline else [woken], [], [], LOOK_SECONDS)
        if woken in ready:
            os.read(woken, 4096)
        if lifeline and (0 in ready or os.getppid() != parent):
            at_once = 0 in ready and os.read(0, 1) != b""
            lifeline, end = False, time.monotonic() + (0.0 if at_once else grace)
        code = reap(worker.pid)
    code = kill_all(worker.pid, code)
    shutil.rmtree(scratch, ignore_errors=True)
    if os.getppid() != parent:
        shutil.rmtree(home, ignore_errors=True)
    worker.returncode = 0 if code is None else code  # or else its finalizer would look again
    return 1 if code is None else code if code >= 0 else 128 - code


def reap(wanted: int) -> int | None:
    """Take note of processes that ended; return the exit code of ``wanted`` if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == wanted:
            code = os.waitstatus_to_exitcode(status)


def kill_all(wanted: int, code: int | None) -> int | None:
    """Kill descendants until there are none; those whose parents die become children of this process."""
    end = time.monotonic() + KILLING_SECONDS
    while time.monotonic() < end:
        found = descendants(os.getpid())
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
        seen = reap(wanted)
        code = seen if code is None else code
    return code


def descendants(root: int) -> list[int]:
    """Return all processes beneath ``root`` that have not been taken note of."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main())
