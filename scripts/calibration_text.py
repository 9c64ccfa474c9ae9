"""Make the calibration text that ships with the package: python scripts/calibration_text.py --data DATA.

DATA holds the folders `common-voice-sentences`, `classical-chinese-prose`, `chinese-poetry` and `tinyshakespeare`. The
same data give the same file. Kinds take turns, so that a short calibration sees all of them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "ernie_accel" / "quant" / "data" / "text.jsonl.xz"
ROUNDS = 40
"""Documents of each kind."""
CHARACTERS = {"en": 1600, "zh": 600}
"""Characters of a document, about."""


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora")
    data = parser.parse_args().data
    rng = random.Random(0)
    kinds = [
        ("English sentences", sentences(data / "common-voice-sentences/en.txt.xz", "en", " ", rng)),
        ("Chinese sentences", sentences(data / "common-voice-sentences/zh-CN.txt.xz", "zh", "", rng)),
        ("Shakespeare", passages([read(data / "tinyshakespeare/input.txt.xz")], "en", rng)),
        ("Chinese novels", passages(chapters(data, "novel"), "zh", rng)),
        ("Chinese classics", passages(chapters(data, "classic"), "zh", rng)),
        ("Chinese poems", poems(data / "chinese-poetry/train.jsonl.xz", rng)),
    ]
    lines = [
        json.dumps({"kind": kind, "text": documents[turn]}, ensure_ascii=False)
        for turn in range(ROUNDS)
        for kind, documents in kinds
    ]
    part = TARGET.with_suffix(".part")
    part.write_bytes(lzma.compress("\n".join(lines).encode() + b"\n", preset=9 | lzma.PRESET_EXTREME))
    part.replace(TARGET)
    print(f"{len(lines)} documents, {sum(map(len, lines)):,} characters, {TARGET.stat().st_size:,} bytes")


def read(path: Path) -> str:
    """The text of an .xz file."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def sentences(path: Path, language: str, between: str, rng: random.Random) -> list[str]:
    """Documents of single sentences, in random order."""
    lines = [line for line in read(path).splitlines() if len(line) > 8]
    rng.shuffle(lines)
    documents: list[str] = []
    at = 0
    while len(documents) < ROUNDS:
        taken: list[str] = []
        while len(between.join(taken)) < CHARACTERS[language]:
            taken.append(lines[at])
            at += 1
        documents.append(between.join(taken))
    return documents


def passages(texts: list[str], language: str, rng: random.Random) -> list[str]:
    """Passages from random places, from the beginning of a line on."""
    documents = []
    for _ in range(ROUNDS):
        text = rng.choice(texts)
        begin = text.find("\n", rng.randrange(max(1, len(text) - CHARACTERS[language]))) + 1
        documents.append(text[begin : begin + CHARACTERS[language]].strip() or text[: CHARACTERS[language]])
    return documents


def chapters(data: Path, kind: str) -> list[str]:
    """Chapters of one kind of book."""
    records = map(json.loads, read(data / "classical-chinese-prose/prose.jsonl.xz").splitlines())
    return [record["text"] for record in records if record["kind"] == kind]


def poems(path: Path, rng: random.Random) -> list[str]:
    """Documents of several poems each, of the training half alone."""
    texts = [json.loads(line)["text"] for line in read(path).splitlines()]
    documents = []
    for _ in range(ROUNDS):
        taken: list[str] = []
        while sum(map(len, taken)) < CHARACTERS["zh"]:
            taken.append(rng.choice(texts))
        documents.append("\n\n".join(taken))
    return documents


if __name__ == "__main__":
    main()
