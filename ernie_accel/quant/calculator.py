"""The arithmetic that takes calibration's time, in the native core: results do not depend on the number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ernie_accel import env, system
from ernie_accel.checkpoint.quantised import SUB_COLUMNS, Bits, QuantisedMatrix
from ernie_accel.errors import BackendError, CapacityError

if TYPE_CHECKING:
    from ernie_accel import _native

__all__ = ["Array", "Calculator"]

Array = npt.NDArray[np.float32]


class Calculator:
    """Matrix products and roundings on some threads.

    Args:
        threads: How many; None takes what the machine and ``ERNIE_ACCEL_THREADS`` allow.

    Raises:
        BackendError: The extension module does not load.
    """

    def __init__(self, threads: int | None = None) -> None:
        try:
            from ernie_accel import _native
        except ImportError as error:
            raise BackendError(
                f"quantization needs the extension module, which does not load: {error}; reinstall ernie-accel"
            ) from error
        isa = env.isa() or _native.supported_isas()[-1]
        count = threads or env.threads() or system.available_threads()
        self._native: _native.Calculator = _native.Calculator(isa, count)

    def multiply(self, x: Array, w: Array) -> Array:
        """Return x @ w.T for x [T, K] and w [N, K]."""
        out = np.empty((len(x), len(w)), np.float32)
        self._native.multiply(_rows(x), _rows(w), out)
        return out

    def multiply_codes(self, x: Array, matrix: QuantisedMatrix, group: int) -> Array:
        """Return what a model makes of x [T, K] with a quantised matrix [N, K]: [T, N].

        ``group`` columns of x share a scale in int8, exact columns take part as they are.
        """
        from ernie_accel import _native

        out = np.empty((len(x), len(matrix.codes)), np.float32)
        self._native.multiply_codes(_rows(x), _native.Tensor.quantised(*matrix.parts), group, out)
        return out

    def gram(self, x: Array) -> Array:
        """Return x.T @ x for x [T, K]; what is above the diagonal is not all there."""
        x, out = _rows(x), np.zeros((x.shape[1], x.shape[1]), np.float32)
        self._native.cross(x, x, out, lower=True)
        return out

    def cross(self, x: Array, y: Array) -> Array:
        """Return x.T @ y for x [T, K] and y [T, N]."""
        out = np.empty((x.shape[1], y.shape[1]), np.float32)
        self._native.cross(_rows(x), _rows(y), out)
        return out

    def factor(self, gram: Array, damping: float) -> Array:
        """Return R transposed, [K, K] and zero above the diagonal: R R^T is ``gram`` with more on its diagonal.

        Of ``gram`` only what is on or below the diagonal counts. ``damping`` is how much more, as a share of the mean;
        ten times as much is tried as long as rounding leaves the matrix without a factor.
        """
        plain = np.diag(gram).copy()
        mean = float(np.mean(plain, dtype=np.float64)) or 1.0
        damped, reach = _rows(gram), np.empty_like(gram)
        while True:
            np.fill_diagonal(damped, plain + np.float32(max(damping, 1e-6) * mean))
            found = self._native.factor(damped, reach)
            np.fill_diagonal(damped, plain)  # a copy of a large matrix takes as long as a fifth of its factor
            if found:
                return reach
            if damping > 1e6:
                raise CapacityError(
                    "calibration met activations that are no numbers; see whether the model works"
                )
            damping = max(damping, 1e-6) * 10

    def solve(self, reach: Array, values: Array) -> Array:
        """Return y of y @ (R R^T) = values, [N, K], for R transposed as ``factor`` gives it."""
        out: Array = values.copy()
        self._native.solve(reach, out)
        return out

    def round(
        self,
        weights: Array,
        *,
        bits: Bits,
        group: int,
        exact: npt.NDArray[np.int32],
        clips: tuple[float, ...],
        reach: Array | None = None,
        weigh: Array | None = None,
    ) -> QuantisedMatrix:
        """Choose codes for ``weights`` [rows, cols].

        Args:
            weights: float32 [rows, cols], finite.
            bits: Bits of a code.
            group: Columns that share a scale.
            exact: Columns that stay bfloat16, ascending.
            clips: Scales that are tried, as shares of the one that clips nothing.
            reach: From ``factor``: rounding errors are fed back to later columns; None rounds to nearest.
            weigh: Without ``reach``: how much the squared error of each column counts; None: all alike.
        """
        rows, cols = weights.shape
        codes = np.empty((rows, cols), np.int8)
        scales = np.empty((rows, -(-cols // group)), np.uint16)
        subs = np.empty((rows, -(-cols // SUB_COLUMNS)), np.uint8) if bits == 4 else None
        exact_weights = np.empty((rows, len(exact)), np.uint16)
        if reach is not None:
            weigh = np.square(np.diag(reach))
        elif weigh is None:
            weigh = np.ones(cols, np.float32)
        flags = np.zeros(cols, np.uint8)
        flags[exact] = 1
        self._native.round(
            _rows(weights), reach, weigh, flags, bits, group, list(clips), codes, scales, subs, exact_weights
        )
        return QuantisedMatrix(
            bits=bits,
            group=group,
            codes=codes,
            scales=scales,
            subs=subs,
            exact=np.asarray(exact, np.int32),
            exact_weights=exact_weights,
        )


def _rows(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)
