"""Addresses of other servers that clients ask for, and the address to use here instead."""

from __future__ import annotations

from collections.abc import Mapping

NOWHERE = "There is nothing at this address."
INSTEAD: Mapping[str, str] = {
    "/openai": "The gateway has none of Azure's addresses: take OpenAI's client, with a base URL that ends in `/v1`.",
    "/v1/responses/input_tokens": "Tokens are counted at POST /v1/messages/count_tokens alone.",
    "/v1/responses": "The gateway stores no responses: send the whole conversation to POST /v1/responses.",
    "/v1/messages": "Of Anthropic's API the gateway has POST /v1/messages and /v1/messages/count_tokens alone.",
    **dict.fromkeys(("/v1/files", "/v1/fine_tuning"), "An admin finds it at a base URL that ends in `/admin/v1`."),
    "/v1/conversations": "The gateway stores no conversations: send all of one to POST /v1/responses.",
}
WITHOUT_PREFIX = ("/chat/completions", "/completions", "/models", "/responses", "/messages", "/embeddings")


def explain_path(path: str) -> str:
    """The message for an address that is not offered."""
    if path == "/":
        return f"{NOWHERE} The API begins at /v1; pages for people, where they are on, at /console."
    if path.startswith("/v1/v1/"):
        return f"{NOWHERE} `/v1` is there twice: OpenAI's clients want it in the base URL, Anthropic's add it."
    if "//" in path:
        return f"{NOWHERE} Two slashes follow each other: the base URL ends without one."
    for address in WITHOUT_PREFIX:
        if _is_below(path, address):
            return f"{NOWHERE} Did you mean /v1{address}? The base URL of an OpenAI client ends in `/v1`."
    for address, text in INSTEAD.items():
        if _is_below(path, address):
            return text
    return f"{NOWHERE} Leave out the slash at its end." if path.endswith("/") else NOWHERE


def _is_below(path: str, address: str) -> bool:
    return path == address or path.startswith(f"{address}/")
