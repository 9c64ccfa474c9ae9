"""Finds the subcommand, runs it, and turns errors into one line and an exit code.

Exit codes: 0 success; 1 something failed; 2 a mistake in arguments or files; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from ernie_accel.errors import (
    ArgumentError,
    BackendUnavailableError,
    CheckpointError,
    ContextLengthError,
    ErnieAccelError,
    MissingExtraError,
    TokenizerError,
    UnsupportedError,
)

__all__ = ["main"]

COMMANDS = {
    "generate": "continue a prompt, or answer it with --chat",
    "chat": "talk to a model in the terminal",
    "bench": "measure how fast a model runs here",
    "quantize": "write a directory of int8 or int4 weights that loads at once",
    "plan": "say whether a model fits, how to divide it and how fast it can be",
    "export": "write a model as a graph for another engine: ONNX",
    "shard": "split a checkpoint among ranks, and put it together again",
    "info": "say what a checkpoint holds, from its headers",
    "doctor": "say what this machine offers, and why",
}

MISTAKES = (
    ArgumentError,
    BackendUnavailableError,
    CheckpointError,
    ContextLengthError,
    MissingExtraError,
    TokenizerError,
    UnsupportedError,
)
"""Errors that the caller can mend by calling differently."""


class Command(Protocol):
    """What a module of this package defines."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Describe the arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a terminal that lacks a character shows "?" and is no reason to stop
            stream.reconfigure(errors="replace")
    top_parser, argv = _parser(), sys.argv[1:] if argv is None else argv
    if not argv:
        top_parser.print_help(sys.stderr)
        return 2
    top = top_parser.parse_args(argv)
    command = cast(Command, import_module(f"ernie_accel.cli.{top.command}"))
    parser = argparse.ArgumentParser(prog=f"ernie-accel {top.command}", description=command.__doc__)
    command.add_arguments(parser)
    return _guarded(command, parser.parse_args(top.arguments))


def _parser() -> argparse.ArgumentParser:
    from ernie_accel import __version__

    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ernie-accel",
        description="Run ERNIE 4.5 on this machine.",
        epilog=f"commands:\n{commands}\n\nernie-accel COMMAND --help shows the arguments of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ernie-accel {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


def _guarded(command: Command, args: argparse.Namespace) -> int:
    try:
        code = command.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, "head" for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ErnieAccelError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, MISTAKES) else 1
