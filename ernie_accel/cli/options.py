"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_accel.errors import ArgumentError

if TYPE_CHECKING:
    from ernie_accel.model import Model
    from ernie_accel.types import SamplingParams

__all__ = ["add_model_arguments", "add_sampling_arguments", "load_model", "sampling_params"]

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def add_model_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add what ``Model.load`` takes; ``optional`` leaves out that there must be a model."""
    nargs = "?" if optional else None
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help="directory or hub id of a checkpoint")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--backend", default="auto", help="what computes; see ernie-accel doctor (default: auto)"
    )
    group.add_argument(
        "--precision", default="auto", help="of the weights: fp32, bf16, int8, ... (default: auto)"
    )
    group.add_argument("--kv-precision", default="auto", help="of the KV cache (default: auto)")
    group.add_argument("--device", help="cpu, gpu, or gpu:1 for the second of several (default: the cpu)")
    group.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="split the model among N (default: 1)"
    )
    group.add_argument("--threads", type=int, help="default: one for each physical core")
    group.add_argument(
        "--max-context", type=int, help="tokens of prompt and output (default: the model's own)"
    )
    group.add_argument(
        "--memory-limit",
        type=int,
        metavar="BYTES",
        help="for the KV cache, which is taken on demand (default: 80 %% of what is free)",
    )
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--cache-dir", help="where files of hub ids are kept")
    group.add_argument("--no-progress", action="store_true", help="show no bar while loading")


def load_model(args: argparse.Namespace, *, max_batch: int | None = None) -> Model:
    """Load the model that the arguments name."""
    from ernie_accel.model import Model

    return Model.load(
        args.model,
        backend=args.backend,
        precision=args.precision,
        kv_precision=args.kv_precision,
        device=args.device,
        tensor_parallel=args.tensor_parallel,
        threads=args.threads,
        max_context=args.max_context,
        max_batch=max_batch,
        memory_limit=args.memory_limit,
        revision=args.revision,
        cache_dir=args.cache_dir,
        progress=False if args.no_progress else None,
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the fields of SamplingParams that make sense for one answer."""
    group = parser.add_argument_group(
        "sampling", "what is not given is the checkpoint's own default (generation_config.json)"
    )
    group.add_argument(
        "--max-tokens", type=int, default=256, help="largest number of new tokens (default: 256)"
    )
    group.add_argument("--temperature", type=float, help="0 takes the most probable token")
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int, help="0 keeps all")
    group.add_argument("--min-p", type=float)
    group.add_argument("--repetition-penalty", type=float)
    group.add_argument("--presence-penalty", type=float)
    group.add_argument("--frequency-penalty", type=float)
    group.add_argument(
        "--seed", type=int, help="the same seed gives the same text (default: a new one each time)"
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after end tokens")
    structures = parser.add_argument_group(
        "structure", "what the output is held to, by at most one of these (extra: structured)"
    ).add_mutually_exclusive_group()
    structures.add_argument("--json-schema", metavar="FILE", help="JSON of the schema in this file")
    structures.add_argument("--regex", help="text that matches this expression as a whole")
    structures.add_argument("--grammar", metavar="FILE", help="text of the Lark grammar in this file")
    structures.add_argument(
        "--choice", action="append", metavar="TEXT", help="one of the texts given; repeat it for each"
    )


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Return the sampling that the arguments ask for."""
    from ernie_accel.types import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        top_k=args.top_k,
        seed=args.seed,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        json_schema=_content("--json-schema", args.json_schema),
        regex=args.regex,
        grammar=_content("--grammar", args.grammar),
        choices=args.choice,
        **{name: getattr(args, name) for name in _NUMBERS},
    )


def _content(option: str, path: str | None) -> str | None:
    """The text of the file that an option names."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{option} {path}: cannot be read: {error}") from None
