"""Talk to a model. Ctrl-C stops an answer, Ctrl-D leaves, /help shows the commands."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from ernie_accel.cli.options import add_model_arguments, add_sampling_arguments, load_model, sampling_params
from ernie_accel.errors import ErnieAccelError

if TYPE_CHECKING:
    from ernie_accel.model import Model
    from ernie_accel.types import SamplingParams

__all__ = ["Session", "add_arguments", "run"]

HELP = """\
/reset  forget the conversation
/exit   leave (so does Ctrl-D)
/help   show this
Ctrl-C stops an answer; what it has so far stays in the conversation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Read lines and answer them until the end of input."""
    params = sampling_params(args)
    with load_model(args) as model:
        session = Session(model, params, args.system)
        session.greet()
        while session.turn():
            pass
    return 0


class Session:
    """A conversation in the terminal."""

    def __init__(self, model: Model, params: SamplingParams, system: str | None) -> None:
        self._model = model
        self._begin = partial(model.conversation, system, params)
        self.conversation = self._begin()
        self._interactive = sys.stdin.isatty()

    def greet(self) -> None:
        """Say what is loaded, on a terminal."""
        if self._interactive:
            _enable_editing()
            info = self._model.info
            print(f"{info.name} ({info.precision} on {info.backend}). /help shows the commands.")

    def turn(self) -> bool:
        """Take one line and do what it asks; False at the end."""
        try:
            line = input("> " if self._interactive else "").strip()
        except EOFError:
            if self._interactive:
                print()
            return False
        except KeyboardInterrupt:  # drops the line that was begun
            print("\n(Ctrl-D or /exit leaves)")
            return True
        if line.startswith("/"):
            return self._command(line)
        if line:
            self._answer(line)
        return True

    def _command(self, line: str) -> bool:
        if line == "/reset":
            self.conversation = self._begin()
            print("(the conversation is forgotten)")
        elif line == "/help":
            print(HELP)
        elif line != "/exit":
            print(f"(unknown command {line.split()[0]}; /help shows those there are)")
        return line != "/exit"

    def _answer(self, line: str) -> None:
        """Answer a message; an answer that failed leaves the conversation as it was."""
        try:
            with self.conversation.stream(line) as stream:  # Ctrl-C may come while a piece is printed
                for chunk in stream:
                    print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except ErnieAccelError as error:
            print(f"error: {error} (/reset forgets the conversation)", file=sys.stderr)
            return
        print()


def _enable_editing() -> None:
    """Give the input line arrow keys and a history, where the system has them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
