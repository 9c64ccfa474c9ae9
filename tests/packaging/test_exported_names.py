"""The public surface is this list; a name that comes or goes changes it deliberately."""

from __future__ import annotations

import inspect
import types
from pathlib import Path

import pytest

import ernie_accel

PAGE = (Path(__file__).parents[2] / "docs/reference/api.md").read_text(encoding="utf-8")
NAMES = [
    "Advice",
    "ArgumentError",
    "AsyncConversationStream",
    "AsyncTokenStream",
    "BackendError",
    "BackendProcessError",
    "BackendUnavailableError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "ContextLengthError",
    "Conversation",
    "ConversationStream",
    "DeadlineError",
    "EngineOptions",
    "ErnieAccelError",
    "FastDeployOptions",
    "FastDeployRuntimeOptions",
    "FinishReason",
    "Handle",
    "Histogram",
    "HubError",
    "MemoryPlan",
    "Message",
    "Metrics",
    "MissingExtraError",
    "Model",
    "ModelInfo",
    "NativeOptions",
    "OnnxRuntimeOptions",
    "PaddleOptions",
    "Precision",
    "Progress",
    "QuantizationReport",
    "QueueFullError",
    "RemoteError",
    "Reply",
    "Report",
    "SamplingParams",
    "Score",
    "TensorRTOptions",
    "Timings",
    "TokenLogprob",
    "TokenStream",
    "TokenizerError",
    "ToolCall",
    "UnsupportedCheckpointError",
    "UnsupportedError",
    "Usage",
    "advise",
    "backends",
    "doctor",
    "inspect",
    "plan",
    "quantize",
    "testing",
]
MODEL = [
    "achat",
    "agenerate",
    "astream",
    "astream_chat",
    "chat",
    "clear_cache",
    "close",
    "config",
    "conversation",
    "embed",
    "generate",
    "info",
    "load",
    "load_conversation",
    "logits",
    "max_context",
    "metrics",
    "plan",
    "profile",
    "score",
    "stream",
    "stream_chat",
    "submit",
    "submit_chat",
    "tokenizer",
]


def test_exported_names() -> None:
    assert sorted(NAMES) == ernie_accel.__all__


def test_members_of_model() -> None:
    assert sorted(name for name in dir(ernie_accel.Model) if not name.startswith("_")) == MODEL


@pytest.mark.parametrize("name", NAMES)
def test_name_exists_is_documented_and_has_a_docstring(name: str) -> None:
    exported = getattr(ernie_accel, name)
    assert f"`{name}`" in PAGE or f"`{name}(" in PAGE or f"`ea.{name}" in PAGE
    alias = isinstance(exported, types.GenericAlias)  # which Python 3.10 takes for a class
    if not alias and (inspect.isclass(exported) or inspect.isfunction(exported)):
        assert exported.__doc__


@pytest.mark.parametrize("name", MODEL)
def test_member_of_model_is_documented(name: str) -> None:
    assert f"`{name}`" in PAGE or f"`{name}(" in PAGE or f"Model.{name}(" in PAGE
    assert getattr(ernie_accel.Model, name).__doc__


def test_private_names_stay_private() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        ernie_accel.Engine  # noqa: B018
