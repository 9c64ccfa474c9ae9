"""The tables from our names to FastDeploy's and the OpenAI API's; what they cannot say raises.

``docs/reference/backends.md`` shows them; a test compares the two. ``fields.py`` applies them to requests,
``launch.py`` to the start of an engine.
"""

from __future__ import annotations

from collections.abc import Mapping

from ernie_accel.backends.fastdeploy.options import Dialect
from ernie_accel.types import FinishReason

__all__ = ["ENGINE_ARGUMENTS", "FINISH", "MAX_SEED", "OFFLINE", "QUANTIZATION", "SAMPLING"]

QUANTIZATION: Mapping[str, str | None] = {
    "bf16": None,
    "fp8": "block_wise_fp8",
    "int8": "wint8",
    "int4": "wint4",
}
"""``precision`` to ``quantization``; ``"auto"`` is the first. int8 and int4 are of weights only: FastDeploy has no
online mode that quantises activations of ERNIE 4.5 too."""

OFFLINE = ("wint2", "w4a8")
"""Quantizations that need a checkpoint which was made so."""

ENGINE_ARGUMENTS: Mapping[str, str] = {
    "source": "model",
    "precision": "quantization",
    "max_context": "max_model_len",
    "max_batch": "max_num_seqs",
    "memory_limit": "num_gpu_blocks_override",
    "tensor_parallel": "tensor_parallel_size",
    "EngineOptions.prefix_cache": "enable_prefix_caching",
    "EngineOptions.speculation": "speculative_config",
    "EngineOptions.step_tokens": "max_num_batched_tokens",
    "FastDeployOptions.data_parallel": "data_parallel_size",
    "FastDeployOptions.expert_parallel": "enable_expert_parallel",
    "FastDeployOptions.memory_utilization": "gpu_memory_utilization",
    "FastDeployOptions.block_size": "block_size",
    "FastDeployOptions.host_cache": "swap_space",
    "FastDeployOptions.loader": "load_choices",
    "FastDeployOptions.guided_decoding": "guided_decoding_backend",
    "FastDeployOptions.logprobs": "enable_logprob",
}
"""Settings of ``Model.load`` to arguments of FastDeploy's engine."""

SAMPLING: Mapping[str, tuple[str | None, str | None]] = {
    "max_tokens": ("max_tokens", "max_tokens"),
    "temperature": ("temperature", "temperature"),
    "top_p": ("top_p", "top_p"),
    "top_k": ("top_k", None),
    "min_p": ("min_p", None),
    "repetition_penalty": ("repetition_penalty", None),
    "presence_penalty": ("presence_penalty", "presence_penalty"),
    "frequency_penalty": ("frequency_penalty", "frequency_penalty"),
    "stop": ("stop", "stop"),
    "stop_token_ids": ("stop_token_ids", None),
    "seed": ("seed", "seed"),
    "logprobs": ("logprobs", "logprobs"),
    "ignore_eos": (None, None),
    "json_schema": ("guided_json", "response_format"),
    "regex": ("guided_regex", None),
    "choices": ("guided_choice", None),
    "grammar": (None, None),
}
"""Fields of ``SamplingParams`` to those of FastDeploy and of the OpenAI API; None: it cannot be said."""

FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "function_call": "stop",
    "recover_stop": "stop",
}
"""Their reasons for an end to ours."""

MAX_SEED: Mapping[Dialect, int] = {"fastdeploy": 922337203685477580, "openai": 2**63 - 1}
"""Largest seed of a request."""
