"""The control endpoints of model servers, as data: which requests no client has a reason to send.

Each stands in the server's own code or documentation, in the version that SOURCES names. Endpoints that only tell
whether the server is well (`/health`, `/is_sleeping`, `/metrics`) are left out, and so is text-generation-inference:
its router has none that changes anything (`router/src/server.rs`, 3.3.6).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Effect = Literal["run", "alter", "change", "stop", "store", "bypass", "read", "manage"]

EFFECTS: dict[Effect, str] = {
    "run": "runs code of the caller's choice in the model server",
    "alter": "changes the weights or adapters, and so what the model answers",
    "change": "changes how the server works",
    "stop": "stops or slows the model for everybody",
    "store": "adds, replaces, removes or gives away models of the server",
    "bypass": "runs the model by a way that the server's API key does not protect",
    "read": "tells how the server is set up, or what it holds",
    "manage": "makes or changes keys, users or models; the server itself asks for an administrator's key",
}

SOURCES = {
    "vLLM": "docs/usage/security.md and vllm/entrypoints/serve, commit 00b005cf (the list is also in the documentation "
    "of 0.18 to 0.27, docs.vllm.ai/en/stable/usage/security)",
    "SGLang": "python/sglang/srt/entrypoints/http_server.py, commit 0025436e",
    "Ollama": "server/routes.go, commit fb307609 (August 2026); docs/api.md",
    "Triton": "src/http_server.cc, 2.73.0dev, commit e1db8a60; docs/protocol/extension_*.md",
    "LiteLLM": "litellm/proxy/_types.py (LiteLLMRoutes, KeyManagementRoutes), commit 00025c84; docs.litellm.ai, "
    "Management API",
}


class ControlEndpoint(NamedTuple):
    """One of them. In `path` an asterisk stands for one segment."""

    servers: tuple[str, ...]
    methods: frozenset[str]
    path: str
    effect: Effect


def _of(servers: str, methods: str, effect: Effect, paths: Iterable[str]) -> list[ControlEndpoint]:
    return [
        ControlEndpoint(tuple(servers.split()), frozenset(methods.split()), path, effect) for path in paths
    ]


CONTROL_ENDPOINTS: tuple[ControlEndpoint, ...] = (
    *_of("vLLM", "POST", "run", ["/collective_rpc"]),
    *_of("vLLM", "POST", "alter", ["/init_weight_transfer_engine", "/update_weights"]),
    *_of("vLLM", "POST", "alter", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]),
    *_of("vLLM", "POST", "stop", ["/sleep", "/wake_up", "/pause", "/resume", "/abort_requests"]),
    *_of("vLLM", "POST", "stop", ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]),
    *_of("vLLM SGLang", "POST", "stop", ["/scale_elastic_ep"]),
    *_of("vLLM SGLang", "GET POST", "stop", ["/start_profile", "/stop_profile"]),
    *_of("vLLM SGLang", "POST", "bypass", ["/invocations"]),
    *_of("vLLM", "GET", "read", ["/server_info", "/tokenizer_info"]),
    *_of("SGLang", "POST", "alter", ["/update_weights_from_disk", "/update_weights_from_tensor"]),
    *_of("SGLang", "POST", "alter", ["/update_weights_from_distributed", "/update_weights_from_ipc"]),
    *_of("SGLang", "POST", "alter", ["/init_weights_update_group", "/destroy_weights_update_group"]),
    *_of("SGLang", "POST", "alter", ["/update_weight_version", "/load_lora_adapter", "/unload_lora_adapter"]),
    *_of("SGLang", "POST PUT", "change", ["/set_internal_state"]),
    *_of("SGLang", "GET POST", "change", ["/configure_logging"]),
    *_of("SGLang", "POST", "store", ["/init_weights_send_group_for_remote_instance"]),
    *_of("SGLang", "POST", "store", ["/send_weights_to_remote_instance"]),
    *_of("SGLang", "POST", "stop", ["/abort_request", "/pause_generation", "/continue_generation"]),
    *_of("SGLang", "GET POST", "stop", ["/release_memory_occupation", "/resume_memory_occupation"]),
    *_of("SGLang", "GET POST", "stop", ["/flush_cache", "/clear_hicache_storage_backend"]),
    *_of("SGLang", "GET POST", "stop", ["/slow_down", "/freeze_gc"]),
    *_of("SGLang", "GET POST", "read", ["/get_weights_by_name"]),
    *_of("SGLang", "GET", "read", ["/get_server_info"]),
    *_of("Ollama", "POST", "store", ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/blobs/*"]),
    *_of("Ollama", "DELETE", "store", ["/api/delete", "/api/user/keys/*"]),
    *_of("Ollama", "POST", "stop", ["/api/signout"]),
    *_of("Triton", "POST", "store", ["/v2/repository/models/*/load", "/v2/repository/models/*/unload"]),
    *_of("Triton", "POST", "store", ["/v2/repository/*/models/*/load", "/v2/repository/*/models/*/unload"]),
    *_of("Triton", "POST", "read", ["/v2/repository/index", "/v2/repository/*/index"]),
    *_of("Triton", "POST", "change", ["/v2/systemsharedmemory/region/*/register"]),
    *_of("Triton", "POST", "change", ["/v2/systemsharedmemory/region/*/unregister"]),
    *_of("Triton", "POST", "change", ["/v2/cudasharedmemory/region/*/register"]),
    *_of("Triton", "POST", "change", ["/v2/cudasharedmemory/region/*/unregister"]),
    *_of(
        "Triton", "POST", "change", ["/v2/systemsharedmemory/unregister", "/v2/cudasharedmemory/unregister"]
    ),
    *_of("Triton", "GET", "read", ["/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status"]),
    *_of("Triton", "POST", "change", ["/v2/logging", "/v2/trace/setting", "/v2/models/*/trace/setting"]),
    *_of("Triton", "POST", "change", ["/v2/models/*/versions/*/trace/setting"]),
    *_of("LiteLLM", "POST", "manage", ["/key/generate", "/key/service-account/generate", "/key/regenerate"]),
    *_of(
        "LiteLLM", "POST", "manage", ["/key/*/regenerate", "/key/update", "/key/bulk_update", "/key/delete"]
    ),
    *_of("LiteLLM", "POST", "manage", ["/key/block", "/key/unblock", "/global/spend/reset"]),
    *_of("LiteLLM", "POST", "manage", ["/user/new", "/user/update", "/user/bulk_update", "/user/delete"]),
    *_of("LiteLLM", "POST", "manage", ["/team/new", "/team/update", "/team/delete", "/team/block"]),
    *_of("LiteLLM", "POST", "manage", ["/team/unblock", "/model/new", "/model/update", "/model/delete"]),
    *_of("LiteLLM", "POST", "manage", ["/config/update"]),
)
