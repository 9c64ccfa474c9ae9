from __future__ import annotations

from typing import Any

import numpy as np


class FDTensor:
    def __init__(self, array: Any = None) -> None:
        self.array = array if array is not None else np.zeros(0)

    def from_numpy(self, array: np.ndarray[Any, Any], share: bool = False) -> None:
        self.array = array if share else array.copy()

    def numpy(self) -> Any:
        return self.array.copy()
