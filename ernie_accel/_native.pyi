"""Types of the extension module; the code is in csrc/bindings."""

from typing import Any

import numpy as np
import numpy.typing as npt

class CapacityError(RuntimeError): ...

class Tensor:
    def __init__(self, array: npt.NDArray[Any], dtype: str) -> None: ...
    @staticmethod
    def quantised(
        bits: int,
        group: int,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.uint16],
        subs: npt.NDArray[np.uint8] | None,
        exact: npt.NDArray[np.int32],
        exact_weights: npt.NDArray[np.uint16],
    ) -> Tensor: ...

class Select:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        vocab_limit: int,
        seen: npt.NDArray[np.int32],
        counts: npt.NDArray[np.int32],
        mask: npt.NDArray[np.uint32],
        logprobs: int,
        seed: int,
    ) -> None: ...

class Config:
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    theta: float
    tied: bool
    experts: int
    experts_per_token: int
    expert_intermediate: int
    shared_experts: int
    norm_min: float
    moe_layers: list[bool]
    group: int
    down_group: int
    head_group: int
    whole_head: bool
    max_context: int
    max_step_tokens: int
    max_sequences: int
    max_pages: int
    def __init__(self) -> None: ...
    @property
    def page_bytes(self) -> int: ...
    def scratch_bytes(self, threads: int) -> int: ...
    def set_precision(self, weights: str, kv: str) -> None: ...

Drawn = tuple[int, float, list[tuple[int, float]]]
StepTuple = tuple[int, npt.NDArray[np.int32], int, str, Select | None]

class Model:
    def __init__(self, config: Config, isa: str, threads: int) -> None: ...
    def set_embedding(self, table: Tensor) -> None: ...
    def set_head(self, head: Tensor) -> None: ...
    def set_final_norm(self, norm: Tensor) -> None: ...
    def set_norms(self, layer: int, input: Tensor, post: Tensor) -> None: ...
    def set_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> None: ...
    def set_ffn(self, layer: int, gate: Tensor, up: Tensor, down: Tensor) -> None: ...
    def set_router(self, layer: int, weight: Tensor, bias: Tensor) -> None: ...
    def set_expert(self, layer: int, expert: int, gate: Tensor, up: Tensor, down: Tensor) -> None: ...
    def matrix_names(self) -> list[str]: ...
    def packed(self, name: str) -> tuple[str, int, list[int], npt.NDArray[np.uint8]]: ...
    def take_packed(self, name: str) -> tuple[str, int, list[int], npt.NDArray[np.uint8]]: ...
    def set_packed(
        self, name: str, precision: str, group: int, exact: list[int], panels: npt.NDArray[np.uint8]
    ) -> None: ...
    def finish(self) -> None: ...
    def open(self) -> int: ...
    def free(self, sequence: int) -> None: ...
    def fork(self, sequence: int, length: int) -> int: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def park(self, sequence: int) -> None: ...
    def length(self, sequence: int) -> int: ...
    def forward(self, batch: list[StepTuple]) -> list[npt.NDArray[np.float32] | list[Drawn] | None]: ...
    def profile(self, on: bool) -> tuple[int, list[tuple[str, int, float, int]]]: ...
    @property
    def free_tokens(self) -> int: ...
    @property
    def used_tokens(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class Calculator:
    def __init__(self, isa: str, threads: int) -> None: ...
    def multiply(
        self,
        x: npt.NDArray[np.float32],
        w: npt.NDArray[np.float32],
        out: npt.NDArray[np.float32],
    ) -> None: ...
    def multiply_codes(
        self, x: npt.NDArray[np.float32], w: Tensor, group: int, out: npt.NDArray[np.float32]
    ) -> None: ...
    def cross(
        self,
        x: npt.NDArray[np.float32],
        y: npt.NDArray[np.float32],
        out: npt.NDArray[np.float32],
        lower: bool = False,
    ) -> None: ...
    def factor(self, gram: npt.NDArray[np.float32], reach: npt.NDArray[np.float32]) -> bool: ...
    def solve(self, reach: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None: ...
    def round(
        self,
        weights: npt.NDArray[np.float32],
        reach: npt.NDArray[np.float32] | None,
        weigh: npt.NDArray[np.float32],
        exact: npt.NDArray[np.uint8],
        bits: int,
        group: int,
        clips: list[float],
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.uint16],
        subs: npt.NDArray[np.uint8] | None,
        exact_weights: npt.NDArray[np.uint16],
    ) -> None: ...

def supported_isas() -> list[str]: ...
def read_bandwidth(bytes: int, threads: int, passes: int) -> float: ...
def select_from(
    select: Select, logits: npt.NDArray[np.float32], position: int, isa: str
) -> tuple[int, float, list[tuple[int, float]]]: ...
def uniform(seed: int, position: int) -> float: ...
