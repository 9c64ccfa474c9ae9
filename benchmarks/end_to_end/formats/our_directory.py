"""Our own quantised directory, so that engines load what users load: calibrated, mapped, ready to multiply."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import ernie_accel as ea
from ernie_accel.quant.recipe import QuantPrecision

from .cache import MODELS, cached, remove
from .checkpoint import label, random_checkpoint

ROOT = Path(__file__).parents[3]
MAKERS = ("ernie_accel/quant", "ernie_accel/checkpoint/packed", "csrc/kernels/linear/pack.h")
"""What decides how a directory looks; another version of it makes another directory."""


def our_directory(shape: str, precision: str, folder: Path = MODELS) -> Path:
    """Return the directory of a shape in ``int8`` or ``int4``, made by ``ernie_accel.quantize`` if it is not there."""
    start = f"{label(shape)}-ours-{precision}-"
    name = start + fingerprint([ROOT / maker for maker in MAKERS])

    def make(path: Path) -> None:
        for old in folder.glob(f"{start}*"):
            remove(old)
        ea.quantize(random_checkpoint(shape), path, precision=cast(QuantPrecision, precision), progress=False)

    return cached(name, make, folder)


def fingerprint(places: list[Path]) -> str:
    """Eight digits that change with any source file: each of ``places`` is one, or a folder of them."""
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.suffix in (".py", ".h"):
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:8]
