"""What a quantization did to a model: sizes, accuracy, errors; kept beside the weights as ``report.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_accel.checkpoint.strict_json import read_object
from ernie_accel.checkpoint.writer import replace_file
from ernie_accel.display import count, html_table, size, text_table
from ernie_accel.errors import ArgumentError, CheckpointError, MissingExtraError
from ernie_accel.quant.evaluate import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPORT_NAME", "QuantizationReport"]

REPORT_NAME = "report.json"
_LIMIT = 64 << 20


@dataclass(frozen=True, kw_only=True, repr=False)
class QuantizationReport:
    """What ``ernie_accel.quantize`` returns; prints as a table, in notebooks too.

    Attributes:
        source: Name of the checkpoint that was quantised.
        precision: ``"int8"`` or ``"int4"``.
        recipe: How the codes were chosen.
        calibration: What text they were fitted to, "" for none.
        parameters: Number of parameters by class.
        bytes: Bytes in the file of weights by the same classes, scales, factors and exact columns included.
        file_bytes: Size of the file of weights, header and padding included.
        errors: By matrix: root of the mean squared error of its results over the calibration inputs, as a share of
            their root mean square; without data the same of its weights.
        accuracy: The quantised model beside fp32 on text that calibration did not see; None if it was not measured.
        accuracy_of: What text that was, or why it was not measured.
        seconds: How long it took, measurements included.
    """

    source: str
    precision: str
    recipe: str
    calibration: str
    parameters: Mapping[str, int]
    bytes: Mapping[str, int]
    file_bytes: int
    errors: Mapping[str, float] = field(default_factory=dict)
    accuracy: Comparison | None = None
    accuracy_of: str = ""
    seconds: float = 0.0

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """Bits for each parameter by class."""
        return {name: 8 * self.bytes[name] / number for name, number in self.parameters.items() if number}

    @property
    def total_bits_per_weight(self) -> float:
        """Bits of the whole file of weights for each parameter."""
        return 8 * self.file_bytes / sum(self.parameters.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises CheckpointError if the disk refuses."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        replace_file(Path(path), lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantizationReport:
        """Read the report of a quantized directory, or a file that ``save`` wrote.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        file = Path(path)
        file = file / REPORT_NAME if file.is_dir() else file
        values = read_object(file, _LIMIT)
        try:
            accuracy = values.pop("accuracy")
            return cls(accuracy=None if accuracy is None else Comparison(**accuracy), **values)
        except (KeyError, TypeError) as error:
            names = ", ".join(item.name for item in fields(cls))
            raise CheckpointError(f"{file}: is no report of a quantization, which has {names}") from error

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw bits by class and errors by layer; ``path`` is where to save the picture, by its ending PNG or SVG.

        Raises:
            MissingExtraError: matplotlib (extra ``plot``) is not installed.
        """
        try:
            from ernie_accel.quant.plot import draw
        except ImportError as error:
            raise MissingExtraError.of("plot", "drawing a QuantizationReport") from error
        figure = draw(self)
        if path is not None:
            try:
                figure.savefig(path)
            except ValueError as error:
                raise ArgumentError(f"path={str(path)!r}: {error}") from error
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
        return figure

    def __repr__(self) -> str:
        return f"QuantizationReport\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return html_table("QuantizationReport", self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of everything, as a table shows it."""
        bits = ", ".join(f"{name} {value:.2f}" for name, value in self.bits_per_weight.items())
        return [
            ("source", self.source),
            ("precision", self.precision),
            ("recipe", self.recipe),
            ("calibration", self.calibration or "none"),
            ("parameters", count(sum(self.parameters.values()))),
            ("file", size(self.file_bytes)),
            ("bits_per_weight", f"{self.total_bits_per_weight:.2f} ({bits})"),
            *self._accuracy_rows(),
            *self._error_rows(),
            ("seconds", f"{self.seconds:.1f}"),
        ]

    def _accuracy_rows(self) -> list[tuple[str, str]]:
        found = self.accuracy
        if found is None:
            return [("accuracy", f"not measured: {self.accuracy_of}")]
        return [
            ("accuracy on", f"{self.accuracy_of}, {found.tokens} tokens, beside fp32"),
            (
                "perplexity",
                f"{found.perplexity:.3f}, fp32 {found.reference_perplexity:.3f} ({found.perplexity_change:+.2%})",
            ),
            ("mean KL", f"{found.kl:.5f} nats a token"),
            ("top-1 agreement", f"{found.top1:.2%}"),
        ]

    def _error_rows(self) -> list[tuple[str, str]]:
        if not self.errors:
            return []
        worst = sorted(self.errors.items(), key=lambda item: -item[1])[:3]
        middle = sorted(self.errors.values())[len(self.errors) // 2]
        named = ", ".join(f"{name} {error:.3f}" for name, error in worst)
        return [("relative errors", f"median {middle:.4f}; largest {named}")]
