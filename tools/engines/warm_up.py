"""The first request to an engine, which takes longer than later ones."""

from __future__ import annotations

import httpx

from tools.engines.errors import LaunchError

TIMEOUT_SECONDS = 180.0


async def warm_up(url: str, model: str) -> None:
    """Ask the engine at `url` for one token with logprobs. Raises LaunchError if it can't answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 1,
    }
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=False) as client:  # noqa: S501
            answer = await client.post(f"{url}/v1/chat/completions", json=body)
            answer.raise_for_status()
    except httpx.HTTPError as error:
        raise LaunchError(f"The engine at {url} started but does not answer ({error!r}): see its log.") from error
