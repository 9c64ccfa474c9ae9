"""Run ERNIE 4.5 inside your own Python program::

import ernie_accel as ea

with ea.Model.load("path/to/ERNIE-4.5-0.3B-PT") as model:
    print(model.generate("Large language models are", max_tokens=64))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ernie_accel.backends import table as backends
from ernie_accel.errors import (
    ArgumentError,
    BackendError,
    BackendProcessError,
    BackendUnavailableError,
    CapacityError,
    CheckpointError,
    ClosedError,
    ContextLengthError,
    DeadlineError,
    ErnieAccelError,
    HubError,
    MissingExtraError,
    QueueFullError,
    RemoteError,
    TokenizerError,
    UnsupportedCheckpointError,
    UnsupportedError,
)
from ernie_accel.types import (
    Chunk,
    Completion,
    FinishReason,
    Message,
    ModelInfo,
    Precision,
    Progress,
    Reply,
    SamplingParams,
    Score,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from ernie_accel import testing
    from ernie_accel.backends.engine import Handle
    from ernie_accel.backends.fastdeploy.options import FastDeployOptions
    from ernie_accel.backends.native.backend import NativeOptions
    from ernie_accel.backends.static_graph.fastdeploy_options import FastDeployRuntimeOptions, TensorRTOptions
    from ernie_accel.backends.static_graph.onnxruntime import OnnxRuntimeOptions
    from ernie_accel.backends.static_graph.paddle_settings import PaddleOptions
    from ernie_accel.checkpoint import inspect
    from ernie_accel.conversation import Conversation
    from ernie_accel.conversation_streams import AsyncConversationStream, ConversationStream
    from ernie_accel.diagnosis import Report, doctor
    from ernie_accel.engine.options import EngineOptions
    from ernie_accel.engine.stream import AsyncTokenStream, TokenStream
    from ernie_accel.metrics import Histogram, Metrics
    from ernie_accel.model import Model
    from ernie_accel.planner.advice import Advice, advise
    from ernie_accel.planner.plan import MemoryPlan
    from ernie_accel.planner.planning import plan
    from ernie_accel.quant.directory import quantize
    from ernie_accel.quant.report import QuantizationReport

__all__ = [
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

__version__ = "0.1.0.dev0"


# Imported when they are first asked for: all at once would triple the time of ``import ernie_accel``.
_LATER = {
    "Advice": "ernie_accel.planner.advice",
    "AsyncConversationStream": "ernie_accel.conversation_streams",
    "AsyncTokenStream": "ernie_accel.engine.stream",
    "Conversation": "ernie_accel.conversation",
    "ConversationStream": "ernie_accel.conversation_streams",
    "EngineOptions": "ernie_accel.engine.options",
    "FastDeployOptions": "ernie_accel.backends.fastdeploy.options",
    "FastDeployRuntimeOptions": "ernie_accel.backends.static_graph.fastdeploy_options",
    "Handle": "ernie_accel.backends.engine",
    "Histogram": "ernie_accel.metrics",
    "MemoryPlan": "ernie_accel.planner.plan",
    "Metrics": "ernie_accel.metrics",
    "Model": "ernie_accel.model",
    "NativeOptions": "ernie_accel.backends.native.backend",
    "OnnxRuntimeOptions": "ernie_accel.backends.static_graph.onnxruntime",
    "PaddleOptions": "ernie_accel.backends.static_graph.paddle_settings",
    "QuantizationReport": "ernie_accel.quant.report",
    "Report": "ernie_accel.diagnosis",
    "TensorRTOptions": "ernie_accel.backends.static_graph.fastdeploy_options",
    "TokenStream": "ernie_accel.engine.stream",
    "advise": "ernie_accel.planner.advice",
    "doctor": "ernie_accel.diagnosis",
    "inspect": "ernie_accel.checkpoint",
    "plan": "ernie_accel.planner.planning",
    "quantize": "ernie_accel.quant.directory",
    "testing": "ernie_accel",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _LATER[name]
    value = import_module(f"{place}.{name}") if place == __name__ else getattr(import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
