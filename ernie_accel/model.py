"""``Model``: one loaded checkpoint and everything that can be done with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ernie_accel.asking import Asking
from ernie_accel.backends.base import LoadOptions
from ernie_accel.closing import Closing
from ernie_accel.display import count, html_table
from ernie_accel.engine.line import Line
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.profiling import Profiling
from ernie_accel.engine.request import Handle, Request, Turn
from ernie_accel.errors import ArgumentError, ClosedError, UnsupportedError
from ernie_accel.generation import Ids, Prompts, TextOrIds, is_one
from ernie_accel.generation_async import AsyncGeneration
from ernie_accel.loading import Loaded, Source, load
from ernie_accel.metrics import Metrics
from ernie_accel.types import ModelInfo, Precision, Progress, SamplingParams, Score

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig
    from ernie_accel.conversation import Conversation, Speaker
    from ernie_accel.planner.plan import MemoryPlan
    from ernie_accel.tokenizer import Tokenizer

__all__ = ["Model"]


class Model(AsyncGeneration, Closing):
    """A loaded model. Make one with ``Model.load``; ``close`` it, or use it as a context manager::

        with ernie_accel.Model.load("path/to/ERNIE-4.5-0.3B-PT") as model:
            print(model.generate("Large language models are", max_tokens=64))

    It may be used from several threads at once: their requests are decoded together.
    """

    def __init__(self, loaded: Loaded) -> None:
        if not isinstance(loaded, Loaded):
            raise ArgumentError(f"Model({loaded!r}): a model is made with Model.load(...)")
        self._loaded = loaded
        self._engine = loaded.engine
        self._line = Line(loaded.engine)
        self._asking = Asking(loaded)
        self._closed = False

    @classmethod
    def load(
        cls,
        source: Source | None = None,
        *,
        backend: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
        kv_precision: Precision | Literal["auto"] = "auto",
        device: str | None = None,
        max_context: int | None = None,
        max_batch: int | None = None,
        memory_limit: int | None = None,
        threads: int | None = None,
        tensor_parallel: int | Literal["auto"] = 1,
        engine: EngineOptions | None = None,
        backend_options: object | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool | Progress | None = None,
    ) -> Self:
        """Load a checkpoint.

        Args:
            source: A directory, a hub id such as ``"baidu/ERNIE-4.5-0.3B-PT"``, or a checkpoint from
                ``ernie_accel.testing``. None only where a server has the model (``FastDeployOptions(endpoint=...)``);
                prompts are then text.
            backend: A name from ``ernie_accel.backends()``; ``"auto"``: the one to which ``backend_options`` belong,
                else the fastest for ``device`` that can run here. ``info.backend_reason`` says which and why.
            precision: Of the weights; ``"auto"`` is int8 on ``native``, fp32 on ``reference``.
            kv_precision: Of the KV cache; ``"auto"`` is the precision of the weights, int8 with int4.
            device: None leaves the choice to the backend.
            max_context: Largest length of prompt and output together, tokens; None: what the model was trained for.
            max_batch: Largest number of requests that are decoded together; None: 32, or fewer where there is no KV
                cache of 512 tokens for each.
            memory_limit: Bytes for the KV cache, which is taken on demand; None: 80 % of what machine and cgroup
                leave.
            threads: None: one a physical core, within affinity and cgroup quota.
            tensor_parallel: Number of devices that share the model; 1 or ``"auto"``.
            engine: How requests are queued and batched; None: the defaults of ``EngineOptions``.
            backend_options: The options object of the backend that is asked for by name.
            revision: Branch, tag or commit of a hub id.
            cache_dir: Where files of hub ids are kept; None: the hub's own cache.
            progress: None shows a bar on stderr if that is a terminal or a notebook; True always; False never; a
                callable is called as ``progress(stage, done, total)``.

        Raises:
            ArgumentError: A value can never work; says what is allowed.
            CheckpointError: The checkpoint is damaged, or of a kind that this version does not run.
            TokenizerError: A tokenizer file is damaged. Without any, ids still work.
            HubError: A hub id cannot be resolved or downloaded.
            BackendUnavailableError: The backend cannot run here.
            UnsupportedError: The backend lacks what was asked for; names those that have it.
            CapacityError: It cannot fit; says what is required and available and the largest context that would, before
                anything is loaded.
        """
        options = LoadOptions(
            precision=precision,
            kv_precision=kv_precision,
            device=device,
            max_context=max_context,
            max_batch=max_batch,
            memory_limit=memory_limit,
            threads=threads,
            tensor_parallel=tensor_parallel,
            backend_options=backend_options,
        )
        return cls(
            load(
                source,
                backend,
                options,
                engine=engine,
                revision=revision,
                cache_dir=cache_dir,
                progress=progress,
            )
        )

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, None if it has none."""
        return self._loaded.tokenizer

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's configuration; attributes are the keys of config.json.

        Raises:
            UnsupportedError: A server has the checkpoint, and no directory of it was given.
        """
        if self._loaded.config is None:
            raise UnsupportedError(
                "the configuration is where the server is; give the checkpoint's directory as source to have it here"
            )
        return self._loaded.config

    @property
    def info(self) -> ModelInfo:
        """What the checkpoint holds, and how it was loaded."""
        return self._loaded.info

    @property
    def plan(self) -> MemoryPlan:
        """What the model was planned to take when it was loaded, with all its requests at the full context.

        It may not fit like that: the KV cache is taken as texts grow, and requests wait where it is used up.

        Raises:
            UnsupportedError: Another engine decides; ``ernie_accel.plan`` says what it would need.
        """
        from ernie_accel.planner.planning import complete

        if self._loaded.planned is None:
            raise UnsupportedError(
                f"backend {self.info.backend!r} decides about its memory itself; ernie_accel.plan says what it needs"
            )
        return complete(self._loaded.planned)

    def logits(self, token_ids: Ids) -> npt.NDArray[np.float32]:
        """Return the raw logits of a given text, float32 [T, vocab_size].

        Row i is what the model expects after ``token_ids[: i + 1]``. Nothing is masked, padding rows of the vocabulary
        are included.

        Raises:
            UnsupportedError: The backend gives no logits; names those that do.
            ArgumentError, ContextLengthError, CapacityError, ClosedError: As in ``generate``.
        """
        self._need("logits")
        return self._engine.logits(self._asking.checked(token_ids))

    @overload
    def score(self, text_or_ids: TextOrIds, *, progress: bool | Progress | None = None) -> Score: ...

    @overload
    def score(self, text_or_ids: Prompts, *, progress: bool | Progress | None = None) -> list[Score]: ...

    def score(
        self, text_or_ids: TextOrIds | Prompts, *, progress: bool | Progress | None = None
    ) -> Score | list[Score]:
        """Return the log-probability of each token given those before it; of several texts as a list.

        A text gets the begin token first where the tokenizer has one; ids are scored as they are. The first token has
        no log-probability. ``progress`` is that of ``generate``.

        Raises:
            UnsupportedError: The backend does not score texts; names those that do.
            TokenizerError: It is text and the checkpoint has no tokenizer.
            ArgumentError, ContextLengthError, CapacityError, ClosedError: As in ``generate``.
        """
        self._need("score")
        if is_one(text_or_ids, "text_or_ids"):
            return self._engine.score([self._asking.begun_ids(text_or_ids, "text_or_ids")])[0]
        parts = self._asking.in_parts(list(text_or_ids), "text_or_ids", self._engine.score, progress)
        return [score for part in parts for score in part]

    def embed(
        self, texts: TextOrIds | Prompts, *, progress: bool | Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return a vector for each text, float32 [n, hidden_size], of length 1.

        It is the mean over positions of the hidden states after the final norm, divided by its Euclidean length. Texts
        get the begin token first, as in ``score``; one text gives n = 1. ``progress`` is that of ``generate``.

        Raises:
            UnsupportedError: The backend does not give hidden states; names those that do.
            TokenizerError: It is text and the checkpoint has no tokenizer.
            ArgumentError, ContextLengthError, CapacityError, ClosedError: As in ``generate``.
        """
        self._need("hidden")
        given: list[TextOrIds] = [texts] if is_one(texts, "texts") else list(texts)
        return np.concatenate(self._asking.in_parts(given, "texts", self._engine.embed, progress))

    def conversation(
        self,
        system: str | None = None,
        params: SamplingParams | None = None,
        *,
        overflow: Literal["error", "drop_oldest"] = "error",
    ) -> Conversation:
        """Begin a conversation, which keeps what was said::

            conversation = model.conversation(system="You answer briefly.")
            print(conversation.send("What is the capital of France?"))

        Args:
            system: Its system message.
            params: How answers are drawn, where a call says nothing else.
            overflow: What happens when the context is full: ``"error"`` raises ContextLengthError, ``"drop_oldest"``
                forgets the oldest exchanges.

        Raises:
            TokenizerError: The checkpoint has no tokenizer.
            ArgumentError: A value can never work.
            ClosedError: The model was closed.
        """
        from ernie_accel.conversation import Conversation

        self._check_open()
        return Conversation(self._speaker("conversation"), system, params, overflow=overflow)

    def load_conversation(self, path: str | os.PathLike[str]) -> Conversation:
        """Go on with a conversation that ``Conversation.save`` wrote.

        Raises:
            ArgumentError: It is of a model with other ids, or there is no such file.
            CheckpointError: The file is damaged.
        """
        from ernie_accel.conversation import Conversation

        self._check_open()
        return Conversation.restore(self._speaker("load_conversation"), path)

    def _speaker(self, what: str) -> Speaker:
        from ernie_accel.conversation import Speaker

        return Speaker(
            model=self,
            tokenizer=self._asking.need_tokenizer(what),
            max_context=self.max_context,
            vocab_size=self._asking.vocab_size,
            architecture=self.info.architecture,
        )

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and output together."""
        return self._engine.info.max_context

    def metrics(self) -> Metrics:
        """Return counters and histograms since the model was loaded, and the state of its queue and memory now."""
        self._check_open()
        return self._engine.metrics()

    def clear_cache(self) -> None:
        """Free the KV cache that ended requests have left for prompts with the same beginning."""
        self._check_open()
        self._engine.clear_cache()

    def profile(self) -> Profiling:
        """Count where the time of steps goes, in a ``with`` block around the calls that are to be counted::

            with model.profile() as profile:
                model.generate("Once upon a time", max_tokens=64)
            print(profile.result.parts)

        Everything that the model computes meanwhile is counted, whoever asked for it.

        Raises:
            UnsupportedError: On entering; the backend does not count.
            ClosedError: The model was closed.
        """
        self._check_open()
        return Profiling(self._engine)

    def close(self) -> None:
        """Give all memory back. What is under way ends with ClosedError, and so does every later call."""
        self._closed = True
        self._engine.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Model cannot be pickled or copied: load it in the process that is to use it")

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{name}={value}' for name, value in self._summary())})"

    def _repr_html_(self) -> str:
        return html_table("Model", self._summary())

    def _summary(self) -> list[tuple[str, str]]:
        info, engine = self.info, self._engine.info
        rows = [
            ("name", info.name),
            ("architecture", info.architecture),
            ("parameters", count(info.total_parameters)),
            ("backend", str(info.backend)),
            ("precision", str(info.precision)),
            ("kv_precision", str(info.kv_precision)),
            ("max_context", str(engine.max_context)),
        ]
        return [*rows, ("state", "closed")] if self._closed else rows

    def _encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int] | Turn:
        self._check_open()
        return self._asking.turn(messages, tools)

    def _requests(
        self,
        prompts: Sequence[TextOrIds | Turn],
        params: SamplingParams,
        timeout: float | None,
        priority: int,
        *,
        turn: bool = False,
    ) -> list[Request]:
        self._check_open()
        requests = self._asking.requests(prompts, params, timeout, priority, turn=turn)
        self._asking.check_lengths([request.token_ids for request in requests], "prompt")
        return requests

    def _start_all(self, requests: Sequence[Request], *, block: bool = True) -> Sequence[Handle]:
        return self._engine.submit_all([self._asking.led(request) for request in requests], block=block)

    async def _astart(self, request: Request, *, block: bool = True) -> Handle:
        if self._asking.is_led(request):  # a grammar may take long to work out, or wait for another's
            request = await asyncio.to_thread(self._asking.led, request)
        return await self._line.submit(request, block=block)

    def _need(self, capability: str) -> None:
        """Raise what the engine raises where it lacks one, before texts are made ids."""
        self._check_open()
        if capability not in self._engine.capabilities:
            refuse: Mapping[str, Callable[[Sequence[Any]], object]] = {
                "logits": self._engine.logits,
                "score": self._engine.score,
                "hidden": self._engine.embed,
            }
            refuse[capability]([])

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model was closed; load it again to go on")
