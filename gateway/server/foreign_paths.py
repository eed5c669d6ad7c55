"""Addresses that clients of other servers ask for, and what to use here instead."""

from __future__ import annotations

from collections.abc import Mapping

NOWHERE = "There is nothing at this address."
CHAT = "/v1/chat/completions"
INSTEAD: Mapping[str, str] = {
    "/v1/responses": f"OpenAI's Responses API is not offered. Use POST {CHAT}, which OpenAI's clients have too.",
    "/v1/messages": f"Anthropic's Messages API is not offered. Use POST {CHAT}, with an OpenAI client.",
    "/v1/embeddings": "Embeddings are not offered. Ask a server of embedding models, with a base URL of its own.",
}
WITHOUT_PREFIX = (CHAT.removeprefix("/v1"), "/completions", "/models", "/responses", "/messages", "/embeddings")


def words_for(path: str) -> str:
    """The message for an address that is not offered."""
    if path.startswith("/v1/v1/"):
        return f"{NOWHERE} `/v1` stands twice: the base URL of an OpenAI client ends in one `/v1`."
    for address in WITHOUT_PREFIX:
        if _is_below(path, address):
            return f"{NOWHERE} Did you mean /v1{address}? The base URL of an OpenAI client ends in `/v1`."
    for address, text in INSTEAD.items():
        if _is_below(path, address):
            return text
    return f"{NOWHERE} Leave out the slash at its end." if path.endswith("/") else NOWHERE


def _is_below(path: str, address: str) -> bool:
    return path == address or path.startswith(f"{address}/")
