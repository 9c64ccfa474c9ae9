"""The file of packed weights: its format, and reading its header while trusting nothing in it.

``weights.eapack`` is 4096 bytes of preamble, the data, and a header in JSON that ends where the file ends. Preamble,
little-endian: 8 bytes of magic, uint32 format version, uint32 zero, uint64 where the header begins, uint64 its length,
32 bytes SHA-256 of it, zeros. Data: every matrix and tensor at a multiple of 64 bytes, in the order of use, nothing
but zeros between them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ernie_accel.architecture import ModelConfig
from ernie_accel.checkpoint.packed.layout import (
    ALIGNMENT,
    MAX_EXACT,
    MAX_GROUP,
    QUANTISED,
    Slot,
    Unit,
    activation_group,
    allowed_precisions,
    matrix_bytes,
    plain_tensors,
    units,
)
from ernie_accel.checkpoint.quantised import ActivationGroups
from ernie_accel.checkpoint.strict_json import check_regular_file, parse_object
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError

__all__ = [
    "DATA_START",
    "FORMAT",
    "WEIGHTS_NAME",
    "MatrixEntry",
    "PackedHeader",
    "TensorEntry",
    "check_preamble",
    "encode_header",
    "parse_header",
    "read_header",
    "write_preamble",
]

WEIGHTS_NAME = "weights.eapack"
"""Name of the file in its directory."""

FORMAT = 1
"""Version of the format; a reader takes its own only."""

DATA_START = 4096
"""Where the data begins, bytes: a page, so that a map of the data is one too."""

MAGIC = b"ERNIEPAK"
_PREAMBLE = struct.Struct("<8sIIQQ32s")
_MAX_HEADER = 256 << 20
_MAX_TEXT = 1 << 16
_MAX_NAME = 255


class MatrixEntry(NamedTuple):
    """Where a packed matrix lies; ``offset`` is from the beginning of the file, ``sha256`` of its bytes in hex."""

    name: str
    precision: str
    group: int
    exact: tuple[int, ...]
    offset: int
    bytes: int
    sha256: str


class TensorEntry(NamedTuple):
    """Where a float32 tensor lies."""

    name: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    sha256: str


class PackedHeader(NamedTuple):
    """What the file says of itself.

    ``library`` is the version that wrote it, ``source`` the name of the checkpoint that was quantised, ``files`` the
    SHA-256 of the small files beside it.
    """

    library: str
    source: str
    precision: str
    activations: ActivationGroups
    recipe: str
    matrices: Mapping[str, MatrixEntry]
    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, str]

    @property
    def entries(self) -> list[MatrixEntry | TensorEntry]:
        """Everything in the file, in the order in which it lies there."""
        both: list[MatrixEntry | TensorEntry] = [*self.matrices.values(), *self.tensors.values()]
        return sorted(both, key=lambda entry: entry.offset)


def encode_header(header: PackedHeader) -> bytes:
    """Write the header as JSON."""
    values = {
        "library": header.library,
        "source": header.source,
        "precision": header.precision,
        "activations": vars(header.activations),
        "recipe": header.recipe,
        "matrices": [entry._asdict() for entry in header.matrices.values()],
        "tensors": [entry._asdict() for entry in header.tensors.values()],
        "files": dict(header.files),
    }
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def write_preamble(file: BinaryIO, offset: int, text: bytes) -> None:
    """Write the first page of a file whose header ``text`` lies at ``offset``."""
    digest = hashlib.sha256(text).digest()
    preamble = _PREAMBLE.pack(MAGIC, FORMAT, 0, offset, len(text), digest)
    file.seek(0)
    file.write(preamble.ljust(DATA_START, b"\0"))


def check_preamble(path: Path, file: BinaryIO) -> int:
    """See that the first page is as ``write_preamble`` writes it; return where the header begins."""
    file.seek(0)
    page = file.read(DATA_START)
    if len(page) < DATA_START:
        raise CheckpointError(f"{path}: is truncated within its first {DATA_START} bytes")
    _, _, zero, offset, _, _ = _PREAMBLE.unpack_from(page)
    if zero or any(page[_PREAMBLE.size :]):
        raise CheckpointError(f"{path}: bytes of its first page are not zero as they were written")
    return int(offset)


def read_header(path: Path, config: ModelConfig) -> PackedHeader:
    """Read the header and compare everything in it with the sizes of ``config`` and of the file.

    Raises:
        CheckpointError: The file cannot be read, is damaged or lies; the message names file and entry.
        UnsupportedCheckpointError: It has another version of the format.
    """
    check_regular_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            text, end = _read_text(path, file, size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_header(text, end, config, str(path))


def _read_text(path: Path, file: BinaryIO, size: int) -> tuple[bytes, int]:
    """Return the header's bytes, and where the data ends."""
    start = file.read(_PREAMBLE.size)
    if len(start) < _PREAMBLE.size or size < DATA_START:
        raise CheckpointError(
            f"{path}: is truncated: {size} bytes, a file of packed weights has at least {DATA_START}"
        )
    magic, version, _, offset, length, digest = _PREAMBLE.unpack(start)
    if magic != MAGIC:
        raise CheckpointError(
            f"{path}: does not begin as a file of packed weights; was writing it interrupted?"
        )
    if version != FORMAT:
        raise UnsupportedCheckpointError(
            f"{path}: has version {version} of the format, this library reads version {FORMAT}: quantize the original "
            "checkpoint again with this version"
        )
    if length > _MAX_HEADER:
        raise CheckpointError(f"{path}: header of {length} bytes: must be at most {_MAX_HEADER}")
    if offset < DATA_START or offset + length != size:
        raise CheckpointError(
            f"{path}: is truncated or damaged: its header ends at byte {offset + length}, the file at {size}"
        )
    file.seek(offset)
    text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise CheckpointError(f"{path}: the header is damaged: its SHA-256 is not the one recorded")
    return text, offset


def parse_header(text: bytes, end: int, config: ModelConfig, source: str) -> PackedHeader:
    """Check the JSON of a header; ``end`` is where the data ends, ``source`` what errors call the file."""
    values = parse_object(text, f"{source}: header")
    precision = values.get("precision")
    if precision not in QUANTISED:
        raise CheckpointError(f"{source}: precision={precision!r}: must be one of {', '.join(QUANTISED)}")
    groups = _groups(values.get("activations"), source)
    matrices = _entries(values.get("matrices"), source, "matrix", MatrixEntry)
    multi_token = any(name.startswith("mtp.") for name in matrices)
    parts = units(config, multi_token=multi_token)
    slots = {slot.name: slot for unit in parts for slot in unit.slots}
    tensors = _entries(values.get("tensors"), source, "tensor", TensorEntry)
    _check_names(matrices, slots, source, "matrices")
    shapes = {name: spec.shape for name, spec in plain_tensors(config, multi_token=multi_token).items()}
    _check_names(tensors, shapes, source, "tensors")
    for name, matrix in matrices.items():
        _check_matrix(matrix, slots[name], groups, f"{source}: matrix {name!r}")
    for name, tensor in tensors.items():
        _check_tensor(tensor, shapes[name], f"{source}: tensor {name!r}")
    _check_places([*matrices.values(), *tensors.values()], end, source)
    if config.is_moe:
        _check_shared_inputs(matrices, parts, source)
    library, origin, recipe = (_text(values, key, source) for key in ("library", "source", "recipe"))
    return PackedHeader(library, origin, precision, groups, recipe, matrices, tensors, _files(values, source))


def _groups(values: object, source: str) -> ActivationGroups:
    names = ("body", "down", "head")
    if not isinstance(values, dict) or set(values) != set(names):
        raise CheckpointError(f"{source}: activations must give the groups of {', '.join(names)}")
    for name, group in values.items():
        if not _is_group(group):
            raise CheckpointError(
                f"{source}: activations: {name}={group!r}: must be a multiple of 16 up to {MAX_GROUP}"
            )
    return ActivationGroups(**values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_group(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_GROUP and value % 16 == 0


def _text(values: Mapping[str, Any], key: str, source: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _is_unicode(value):
        raise CheckpointError(f"{source}: {key} must be a string of at most {_MAX_TEXT} characters")
    return value


def _is_unicode(text: str) -> bool:
    """Whether it can be printed and stored: JSON lets halves of surrogate pairs pass."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _files(values: Mapping[str, Any], source: str) -> Mapping[str, str]:
    files = values.get("files")
    if not isinstance(files, dict) or not all(_is_digest(item) for item in files.values()):
        raise CheckpointError(f"{source}: files must map names to SHA-256 in hex")
    for name in files:
        # isprintable: no NUL, nothing that is no character; a separator of another system is none of this one's
        if (
            not name.isprintable()
            or not 1 <= len(name) <= _MAX_NAME
            or set(name) & set("/\\:")
            or name in (".", "..")
        ):
            raise CheckpointError(f"{source}: files: {name[:80]!r} must be a plain file name")
    return files


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _entries(values: object, source: str, what: str, kind: Any) -> Any:
    if not isinstance(values, list):
        raise CheckpointError(f"{source}: the list of {what} entries is missing")
    found: dict[str, Any] = {}
    for index, value in enumerate(values):
        where = f"{source}: {what} {index}"
        if (
            not isinstance(value, dict)
            or set(value) != set(kind._fields)
            or not isinstance(value["name"], str)
        ):
            raise CheckpointError(f"{where}: must have {', '.join(kind._fields)}")
        for key in ("exact", "shape"):
            if key in value:
                value[key] = _counts(value[key], f"{where}: {key}")
        if not _is_count(value["offset"]) or not _is_count(value["bytes"]) or not _is_digest(value["sha256"]):
            raise CheckpointError(f"{where}: offset and bytes must be whole numbers, sha256 64 digits in hex")
        if value["name"] in found:
            raise CheckpointError(f"{where}: the name {value['name']!r} appears twice")
        found[value["name"]] = kind(**value)
    return found


def _counts(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(_is_count(item) for item in value):
        raise CheckpointError(f"{where} must be a list of whole numbers")
    return tuple(value)


def _check_names(found: Iterable[str], wanted: Iterable[str], source: str, what: str) -> None:
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    if missing or extra:
        name = min(missing or extra)
        problem = "is missing" if missing else "does not belong to this model"
        raise CheckpointError(f"{source}: the {what} do not fit config.json: {name!r} {problem}")


def _check_matrix(entry: MatrixEntry, slot: Slot, groups: ActivationGroups, where: str) -> None:
    allowed = allowed_precisions(slot.kind)
    if entry.precision not in allowed:
        raise CheckpointError(f"{where}: precision={entry.precision!r}: must be {' or '.join(allowed)}")
    if entry.precision != "bf16":
        activations = activation_group(groups, slot.kind)
        if not _is_group(entry.group) or entry.group % activations:
            raise CheckpointError(
                f"{where}: group={entry.group!r}: must be a multiple of {activations}, its input's"
            )
        _check_exact(entry.exact, slot.cols, where)
    elif entry.exact or type(entry.group) is not int or entry.group != 0:
        raise CheckpointError(f"{where}: is not quantised and must have no group and no exact columns")
    expected = matrix_bytes(slot, entry.precision, entry.group, len(entry.exact))
    if entry.bytes != expected:
        raise CheckpointError(
            f"{where}: {entry.bytes} bytes: {slot.rows} x {slot.cols} in {entry.precision} take {expected}"
        )


def _check_exact(exact: tuple[int, ...], cols: int, where: str) -> None:
    ascending = all(a < b for a, b in pairwise(exact))
    if len(exact) > MAX_EXACT or len(exact) % 2 or not ascending or (exact and exact[-1] >= cols):
        raise CheckpointError(
            f"{where}: exact columns must be an even number up to {MAX_EXACT}, ascending and below {cols}"
        )


def _check_tensor(entry: TensorEntry, shape: tuple[int, ...], where: str) -> None:
    if entry.shape != shape:
        raise CheckpointError(
            f"{where}: shape {list(entry.shape)}: must be {list(shape)} by the sizes in config.json"
        )
    size = 4
    for length in shape:
        size *= length
    if entry.bytes != size:
        raise CheckpointError(f"{where}: {entry.bytes} bytes: its shape takes {size}")


def _check_places(entries: list[Any], end: int, source: str) -> None:
    position, before = DATA_START, "the preamble"
    for entry in sorted(entries, key=lambda item: (item.offset, item.bytes)):
        where = f"{source}: {entry.name!r}"
        if entry.offset % ALIGNMENT:
            raise CheckpointError(f"{where}: offset {entry.offset}: must be a multiple of {ALIGNMENT}")
        if entry.offset < position:
            raise CheckpointError(
                f"{where}: overlaps {before}: bytes from {entry.offset}, that ended at {position}"
            )
        if entry.offset - position >= ALIGNMENT:
            raise CheckpointError(f"{where}: leaves a gap after {before}, which ended at byte {position}")
        position, before = entry.offset + entry.bytes, repr(entry.name)
    if position > end or end - position >= ALIGNMENT:
        raise CheckpointError(f"{source}: the data ends at byte {position}, the header begins at {end}")


def _check_shared_inputs(matrices: Mapping[str, MatrixEntry], parts: Iterable[Unit], source: str) -> None:
    """Experts of a layer, shared ones too, read one prepared input, which has one set of exact columns."""
    for unit in parts:
        inputs = [matrices[slot.name] for slot in unit.slots if slot.name.endswith("gate_up")]
        for entry in inputs[1:]:
            if (entry.precision, entry.exact) != (inputs[0].precision, inputs[0].exact):
                raise CheckpointError(
                    f"{source}: matrix {entry.name!r}: must have the precision and exact columns of {inputs[0].name!r}"
                )
