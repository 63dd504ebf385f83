# SPDX-License-Identifier: Apache-2.0
"""What the engines' HTTP servers have, as far as the controller and the stand-ins need it, and where their
sources have it. test_standins.py compares this with sources that are installed, and with the stand-ins."""

from __future__ import annotations

from dataclasses import dataclass

# Read, and compared by test_standins.py, with these.
VLLM_RELEASES = ("0.32.0",)
SGLANG_RELEASES = ("0.5.23",)


@dataclass(frozen=True)
class Route:
    """`query` and `body`: names of parameters that are read; None: a body whose fields are not compared.
    `reply`: keys of the JSON of a success, as far as the handler itself writes them; None: no such JSON."""

    path: str
    methods: frozenset[str]
    query: frozenset[str] = frozenset()
    body: frozenset[str] | None = frozenset()
    reply: frozenset[str] | None = None
    source: str = ""
    dev_mode: bool = False


def _route(
    method: str,
    path: str,
    source: str,
    *,
    query: str = "",
    body: str | None = "",
    reply: str | None = None,
    dev_mode: bool = False,
) -> Route:
    return Route(
        path,
        frozenset(method.split()),
        frozenset(query.split()),
        None if body is None else frozenset(body.split()),
        None if reply is None else frozenset(reply.split()),
        source,
        dev_mode,
    )


_SERVE = "entrypoints/serve"
_SLEEP = f"{_SERVE}/dev/sleep/api_router.py"
VLLM: tuple[Route, ...] = (
    _route("GET", "/health", f"{_SERVE}/instrumentator/health.py"),
    _route("GET", "/version", f"{_SERVE}/instrumentator/basic.py", reply="version"),
    _route("GET", "/v1/models", "entrypoints/openai/models/api_router.py"),
    _route("POST", "/v1/completions", "entrypoints/openai/completion/api_router.py", body=None),
    _route("POST", "/v1/chat/completions", "entrypoints/openai/chat_completion/api_router.py", body=None),
    _route("POST", "/v1/embeddings", "entrypoints/pooling/embed/api_router.py", body=None),
    _route("POST", "/sleep", _SLEEP, query="level mode", reply="status level", dev_mode=True),
    _route("POST", "/wake_up", _SLEEP, query="tags", reply="status tags", dev_mode=True),
    _route("GET", "/is_sleeping", _SLEEP, reply="is_sleeping", dev_mode=True),
    _route(
        "POST",
        "/collective_rpc",
        f"{_SERVE}/dev/rpc/api_router.py",
        body="method args kwargs timeout",
        reply="results",
        dev_mode=True,
    ),
)

_SERVER = "srt/entrypoints/http_server.py"
SGLANG: tuple[Route, ...] = (
    _route("GET", "/health", _SERVER),
    _route("GET", "/health_generate", _SERVER),
    _route("GET", "/ready", _SERVER),
    _route("GET", "/model_info", _SERVER, reply="model_path served_model_name"),
    _route("GET", "/get_model_info", _SERVER),
    _route("GET", "/server_info", _SERVER, reply="internal_states version"),
    _route("GET", "/get_server_info", _SERVER),
    _route("GET", "/v1/models", _SERVER),
    _route("POST", "/v1/completions", _SERVER, body=None),
    _route("POST", "/v1/chat/completions", _SERVER, body=None),
    _route("POST", "/v1/embeddings", _SERVER, body=None),
    _route("GET POST", "/release_memory_occupation", _SERVER, body="tags"),
    _route("GET POST", "/resume_memory_occupation", _SERVER, body="tags"),
    _route("POST", "/pause_generation", _SERVER, body="mode", reply="message status"),
    _route("POST", "/continue_generation", _SERVER, body="torch_empty_cache", reply="message status"),
    _route(
        "POST",
        "/update_weights_from_disk",
        _SERVER,
        body="model_path load_format flush_cache",
        reply="success message num_paused_requests",
    ),
)

# Fields of classes that replies are made of: (source, class) -> those that the stand-ins' replies have.
VLLM_CLASSES: dict[tuple[str, str], frozenset[str]] = {
    (f"{_SERVE}/engine/protocol.py", "ErrorResponse"): frozenset({"error"}),
    (f"{_SERVE}/engine/protocol.py", "ErrorInfo"): frozenset({"message", "type", "param", "code"}),
    (f"{_SERVE}/engine/protocol.py", "ModelList"): frozenset({"object", "data"}),
    (f"{_SERVE}/engine/protocol.py", "ModelCard"): frozenset(
        {"id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"}
    ),
    (f"{_SERVE}/engine/protocol.py", "UsageInfo"): frozenset(
        {"prompt_tokens", "total_tokens", "completion_tokens"}
    ),
    ("entrypoints/openai/completion/protocol.py", "CompletionResponse"): frozenset(
        {"id", "object", "created", "model", "choices", "usage"}
    ),
    ("entrypoints/openai/completion/protocol.py", "CompletionStreamResponse"): frozenset(
        {"id", "object", "created", "model", "choices", "usage"}
    ),
    ("entrypoints/openai/chat_completion/protocol.py", "ChatCompletionResponse"): frozenset(
        {"id", "object", "created", "model", "choices", "usage"}
    ),
    ("entrypoints/pooling/embed/protocol.py", "EmbeddingResponse"): frozenset(
        {"id", "object", "created", "model", "data", "usage"}
    ),
}
_PROTOCOL = "srt/entrypoints/openai/protocol.py"
SGLANG_CLASSES: dict[tuple[str, str], frozenset[str]] = {
    (_PROTOCOL, "ErrorResponse"): frozenset({"object", "message", "type", "param", "code"}),
    (_PROTOCOL, "ModelList"): frozenset({"object", "data"}),
    (_PROTOCOL, "ModelCard"): frozenset(
        {"id", "object", "created", "owned_by", "root", "parent", "max_model_len"}
    ),
    (_PROTOCOL, "UsageInfo"): frozenset({"prompt_tokens", "total_tokens", "completion_tokens"}),
    (_PROTOCOL, "CompletionResponse"): frozenset({"id", "object", "created", "model", "choices", "usage"}),
    (_PROTOCOL, "CompletionStreamResponse"): frozenset(
        {"id", "object", "created", "model", "choices", "usage"}
    ),
    (_PROTOCOL, "ChatCompletionResponse"): frozenset(
        {"id", "object", "created", "model", "choices", "usage"}
    ),
    (_PROTOCOL, "EmbeddingResponse"): frozenset({"data", "model", "object", "usage"}),
}
