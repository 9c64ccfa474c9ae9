"""ERNIE 4.5 in NumPy and float32, dense and mixture of experts: slow, plain, and the judge of every other backend.

Read ``ernie_accel/arithmetic.py`` for the formulas, and then this from top to bottom: the weights, the Runner (whose
cache is ``array_cache.py``), multi-token prediction. T is the number of tokens of a step over all its sequences, H the
hidden size, d the head size; every matrix is [out, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture.multi_token import (
    EMB_NORM,
    HIDDEN_NORM,
    MTP_BLOCK,
    MTP_PREFIX,
    PROJECTION,
    check_multi_token,
)
from ernie_accel.arithmetic import attend, rms_norm, rotary_angles, rotate, route, silu, softmax
from ernie_accel.backends.array_cache import KvCache, Span, split
from ernie_accel.backends.base import (
    Availability,
    Footprint,
    LoadOptions,
    RunnerInfo,
    SequenceId,
    Step,
    StepResult,
)
from ernie_accel.backends.checks import check_batch, check_context, check_drafts, check_plain_cpu
from ernie_accel.backends.registry import check_precision
from ernie_accel.backends.sequences import SequenceRunner
from ernie_accel.checkpoint.base import Checkpoint, check_vector, to_float32
from ernie_accel.errors import ArgumentError, CapacityError, ClosedError, UnsupportedError
from ernie_accel.types import Progress

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["ReferenceBackend", "ReferenceRunner"]

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MAX_STEP_TOKENS = 1024
DEFAULT_SEQUENCES = 32


# The weights.


@dataclass(frozen=True)
class Ffn:
    """A SwiGLU block: gate and up [width, H], down [H, width]."""

    gate: Array
    up: Array
    down: Array

    def __call__(self, x: Array) -> Array:
        """Shazeer 2020, "GLU variants improve transformer"."""
        y: Array = (silu(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T
        return y


@dataclass(frozen=True)
class Moe:
    """Routed experts and, in some models, one shared block: router [experts, H], bias [experts]."""

    router: Array
    bias: Array
    experts: tuple[Ffn, ...]
    shared: Ffn | None
    k: int
    norm_min: float

    def __call__(self, x: Array) -> Array:
        """Weighted sum of the chosen experts, in the order of their indices, and the shared block."""
        chosen, weights = self.route(x)
        out = np.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, slots = np.nonzero(chosen == index)
            if len(rows):
                out[rows] += weights[rows, slots, None] * expert(x[rows])
        return out + self.shared(x) if self.shared else out

    def route(self, x: Array) -> tuple[Ints, Array]:
        """Return chosen experts and their weights, both [T, k]."""
        return route(softmax(x @ self.router.T), self.bias, self.k, self.norm_min)


@dataclass(frozen=True)
class Layer:
    """One decoder layer: q [heads * d, H], k and v [kv_heads * d, H], o [H, heads * d]."""

    input_norm: Array
    q: Array
    k: Array
    v: Array
    o: Array
    post_norm: Array
    ffn: Ffn | Moe


@dataclass(frozen=True)
class MultiToken:
    """Multi-token prediction: projection [H, 2H], and a dense layer."""

    emb_norm: Array
    hidden_norm: Array
    projection: Array
    layer: Layer


@dataclass(frozen=True)
class Weights:
    """The whole model: embedding and head [vocab_size, H], one array when tied."""

    embedding: Array
    layers: tuple[Layer, ...]
    norm: Array
    head: Array
    multi_token: MultiToken | None = None


class WeightReader:
    """Reads a checkpoint's tensors as float32 and reports how far it is."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        self._checkpoint = checkpoint
        self._progress = progress
        self._done = 0
        self._total = 4 * checkpoint.info.total_parameters

    def __call__(self, name: str) -> Array:
        """Return one tensor by its name."""
        tensor = self._checkpoint.tensor(name)
        check_vector(name, tensor)
        return self._counted(to_float32(tensor))

    def matrix(self, name: str) -> Array:
        """Return one matrix that is multiplied; of a ``QuantisedCheckpoint`` what its codes stand for."""
        if not hasattr(self._checkpoint, "matrix") or name.startswith(MTP_PREFIX):
            return self(name)
        return self._counted(self._checkpoint.matrix(name).to_float32())

    def _counted(self, array: Array) -> Array:
        self._done += array.nbytes
        if self._progress is not None:
            self._progress("load", self._done, self._total)
        return array

    def ffn(self, prefix: str) -> Ffn:
        """Return a SwiGLU block."""
        return Ffn(*(self.matrix(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down")))

    def moe(self, prefix: str, config: ModelConfig) -> Moe:
        """Return a mixture of experts."""
        return Moe(
            router=self(f"{prefix}.gate.weight"),
            bias=self(f"{prefix}.moe_statics.e_score_correction_bias").reshape(-1),
            experts=tuple(self.ffn(f"{prefix}.experts.{j}") for j in range(config.moe_num_experts)),
            shared=self.ffn(f"{prefix}.shared_experts") if config.moe_num_shared_experts else None,
            k=config.moe_k,
            norm_min=config.moe_norm_min,
        )

    def layer(self, prefix: str, config: ModelConfig, moe: bool) -> Layer:
        """Return one decoder layer."""
        q, k, v, o = (self.matrix(f"{prefix}.self_attn.{part}_proj.weight") for part in "qkvo")
        return Layer(
            input_norm=self(f"{prefix}.input_layernorm.weight"),
            q=q,
            k=k,
            v=v,
            o=o,
            post_norm=self(f"{prefix}.post_attention_layernorm.weight"),
            ffn=self.moe(f"{prefix}.mlp", config) if moe else self.ffn(f"{prefix}.mlp"),
        )

    def multi_token(self, config: ModelConfig) -> MultiToken:
        """Return what drafts are made with, which is never in codes."""
        check_multi_token(config, self._checkpoint.info.name)
        return MultiToken(
            emb_norm=self(EMB_NORM),
            hidden_norm=self(HIDDEN_NORM),
            projection=self(PROJECTION),
            layer=self.layer(MTP_BLOCK, config, moe=False),
        )

    def model(self, config: ModelConfig, *, multi_token: bool = False) -> Weights:
        """Return everything."""
        tied = config.tie_word_embeddings
        embedding = (self.matrix if tied else self)("model.embed_tokens.weight")
        layers = tuple(
            self.layer(f"model.layers.{i}", config, config.is_moe_layer(i))
            for i in range(config.num_hidden_layers)
        )
        head = embedding if tied else self.matrix("lm_head.weight")
        more = self.multi_token(config) if multi_token else None
        return Weights(embedding, layers, self("model.norm.weight"), head, more)


# The Runner.


class ReferenceRunner(SequenceRunner[KvCache]):
    """Runs the model above on ragged batches; see ``ernie_accel.backends.base.Runner`` for the contract."""

    def __init__(self, config: ModelConfig, weights: Weights, info: RunnerInfo, kv_tokens: int) -> None:
        super().__init__(info, kv_tokens)
        self._config = config
        self._weights: Weights | None = weights

    def close(self) -> None:
        """Drop weights and caches."""
        super().close()
        self._weights = None

    def _empty(self) -> KvCache:
        c, more = self._config, self._weights is not None and self._weights.multi_token is not None
        hidden = c.hidden_size if more else 0
        return KvCache(c.num_hidden_layers + more, c.num_key_value_heads, c.head_dim, hidden)

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        """Compute one step. Lengths change last, so an error leaves every sequence as it was."""
        weights = self._weights
        if weights is None:
            raise ClosedError("the runner is closed; load the model again")
        ids = check_batch(batch, self._info, self._growable_length)
        self._check_tokens(sum(map(len, ids)))
        if not batch:
            return []
        caches = [self._state(step.seq) for step in batch]
        for cache, tokens in zip(caches, ids, strict=True):
            cache.reserve(cache.length + len(tokens))
        spans = [Span(cache, cache.length, len(tokens)) for cache, tokens in zip(caches, ids, strict=True)]
        x = weights.embedding[np.concatenate(ids)]
        angles = self._angles(spans)
        for index, layer in enumerate(weights.layers):
            x = self._layer(index, layer, x, angles, spans)
        rows = split(x, spans)
        results = [self._answer(weights, step, part) for step, part in zip(batch, rows, strict=True)]
        for span, part, tokens in zip(spans, rows, ids, strict=True):
            self._keep(weights, span, part, tokens.tolist())
        return results

    def _angles(self, spans: list[Span]) -> Array:
        positions = [np.arange(span.first, span.first + span.size) for span in spans]
        return rotary_angles(np.concatenate(positions), self._config.head_dim, self._config.rope_theta)

    def _layer(self, index: int, layer: Layer, x: Array, angles: Array, spans: list[Span]) -> Array:
        """Send rows [T, H] through one layer."""
        eps = self._config.rms_norm_eps
        x = x + self._attention(index, layer, rms_norm(x, layer.input_norm, eps), angles, spans) @ layer.o.T
        return x + layer.ffn(rms_norm(x, layer.post_norm, eps))

    def _attention(self, index: int, layer: Layer, x: Array, angles: Array, spans: list[Span]) -> Array:
        """Project, rotate, append to the caches, attend: [T, heads * d]. Each sequence sees its own cache only."""
        shape = (len(x), -1, self._config.head_dim)
        q = rotate((x @ layer.q.T).reshape(shape), angles)
        k = rotate((x @ layer.k.T).reshape(shape), angles)
        v = (x @ layer.v.T).reshape(shape)
        out = []
        for (cache, first, size), *own in zip(spans, *(split(a, spans) for a in (q, k, v)), strict=True):
            q_i, k_i, v_i = own
            end = first + size
            cache.keys[index, first:end], cache.values[index, first:end] = k_i, v_i
            out.append(attend(q_i, cache.keys[index, :end], cache.values[index, :end], first))
        return np.concatenate(out).reshape(len(x), -1)

    def _answer(self, weights: Weights, step: Step, x: Array) -> StepResult:
        """Final norm and head for the last ``rows`` positions of one sequence."""
        if step.rows == 0:
            return StepResult()
        hidden = rms_norm(x[-step.rows :], weights.norm, self._config.rms_norm_eps)
        return (
            StepResult(hidden=hidden)
            if step.output == "hidden"
            else StepResult(logits=hidden @ weights.head.T)
        )

    def _keep(self, weights: Weights, span: Span, x: Array, ids: list[int]) -> None:
        """Count new tokens in, and keep what multi-token prediction will ask for."""
        span.cache.length += span.size
        if weights.multi_token is not None:
            hidden = rms_norm(x, weights.norm, self._config.rms_norm_eps)
            span.cache.hidden[span.first : span.cache.length] = hidden
            span.cache.ids += ids

    # Multi-token prediction: ``architecture/multi_token.py`` has the formula.

    def draft(
        self, seqs: Sequence[SequenceId], token_ids: Sequence[int], depth: int
    ) -> list[tuple[int, ...]]:
        """Guess ``depth`` tokens for each sequence; ``ernie_accel.backends.capabilities.Drafts`` is the contract."""
        self._check_open()
        check_drafts(seqs, token_ids, depth, self._info, self._growable_length)
        return [
            self._guesses(self._state(seq), token, depth) for seq, token in zip(seqs, token_ids, strict=True)
        ]

    def _guesses(self, cache: KvCache, token: int, depth: int) -> tuple[int, ...]:
        """Compute the positions that are new, the last of which guesses; then one more for each further guess."""
        weights = self._weights
        assert weights is not None
        cache.reserve(cache.length + depth - 1)
        ids = [*cache.ids[cache.predicted + 1 :], token]
        hidden = cache.hidden[cache.predicted : cache.length]
        span = Span(cache, cache.predicted, len(ids))
        guesses, eps = [], self._config.rms_norm_eps
        for _ in range(depth):
            x = self._predict(weights, ids, hidden, span)
            hidden = rms_norm(x, weights.norm, eps)
            guesses.append(int(np.argmax(hidden @ weights.head.T)))
            ids = guesses[-1:]
            span = Span(cache, span.first + span.size, 1)
        cache.predicted = cache.length - 1  # what comes after them need not be ``token``
        return tuple(guesses)

    def _predict(self, weights: Weights, ids: list[int], hidden: Array, span: Span) -> Array:
        """Return the last row [1, H] of the predicting layer; ids are the tokens after those of ``hidden`` [n, H]."""
        eps, more = self._config.rms_norm_eps, weights.multi_token
        assert more is not None
        embedded = rms_norm(weights.embedding[ids], more.emb_norm, eps)
        pairs = np.concatenate([embedded, rms_norm(hidden, more.hidden_norm, eps)], axis=1)
        x = pairs @ more.projection.T
        return self._layer(len(weights.layers), more.layer, x, self._angles([span]), [span])[-1:]


class ReferenceBackend:
    """The backend named ``reference``."""

    name = "reference"
    precisions: tuple[str, ...] = ("fp32",)

    def available(self) -> Availability:
        """It runs wherever NumPy does."""
        return Availability(True, "Needs nothing but NumPy; slow, meant for checking other backends.")

    def estimate(self, config: ModelConfig, options: LoadOptions) -> Footprint:
        """Bytes beside the weights: the cache (which may hold twice what is used) and the widest step."""
        check_precision(self, options)
        check_plain_cpu(self.name, options)
        context = check_context(options, config.max_position_embeddings)
        widest = max(config.vocab_size, 3 * config.intermediate_size, 3 * context)
        layers = config.num_hidden_layers + options.multi_token
        token = 2 * 4 * layers * config.num_key_value_heads * config.head_dim
        token += options.multi_token * 4 * (config.hidden_size + 1)
        return Footprint(
            kv_per_token=2 * token,
            scratch=4 * MAX_STEP_TOKENS * widest,
            runtime=0,
            step_tokens=MAX_STEP_TOKENS,
            kv_precision="fp32",
        )

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> ReferenceRunner:
        """Read all weights as float32."""
        check_precision(self, options)
        check_plain_cpu(self.name, options)
        if options.kv_precision not in ("auto", "fp32"):
            raise UnsupportedError(f"kv_precision={options.kv_precision!r}: backend 'reference' has fp32")
        if options.backend_options is not None:
            raise ArgumentError(f"backend_options={options.backend_options!r}: backend 'reference' has none")
        config = checkpoint.config
        context = check_context(options, config.max_position_embeddings)
        sequences = options.max_batch or DEFAULT_SEQUENCES
        info = RunnerInfo(
            backend=self.name,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_context=context,
            precision="fp32",
            kv_precision="fp32",
            page_size=1,
            max_step_tokens=MAX_STEP_TOKENS,
            max_sequences=sequences,
            capabilities=frozenset({"hidden", "park", *(["draft"] if options.multi_token else [])}),
        )
        tokens = _kv_tokens(self.estimate(config, options), options.memory_limit, sequences * context)
        weights = WeightReader(checkpoint, options.progress).model(config, multi_token=options.multi_token)
        return ReferenceRunner(config, weights, info, tokens)


def _kv_tokens(need: Footprint, memory_limit: int | None, most: int) -> int:
    """Return how many tokens of cache fit into ``memory_limit``."""
    if memory_limit is None:
        return most
    tokens = memory_limit // need.kv_per_token
    if tokens < 1:
        raise CapacityError(
            f"memory_limit={memory_limit}: one token of KV cache takes {need.kv_per_token} bytes; raise the limit"
        )
    return min(most, tokens)
