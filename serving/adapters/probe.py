"""Does a replica really serve this version? A golden prompt at temperature 0 tells it from the base model."""

from __future__ import annotations

from typing import Any

import httpx

from serving.adapters.registry import Version
from serving.health import engine_headers
from serving.replica import Replica

PROBE_TIMEOUT_SECONDS = 60.0
PROBE_TOKENS_MAX = 48
LOGPROB_TOLERANCE = 0.02


class ProbeError(Exception):
    """The replica does not serve the version as it should; the message says how it showed."""


async def probe(replica: Replica, version: Version, base_model: str, http: httpx.AsyncClient) -> None:
    """Ask for the first golden answer. Raises ProbeError if it is the base model's, or not the one expected.

    Without a golden prompt in the manifest, a fixed one is asked and only the difference from the base is seen.
    """
    golden = (version.manifest.get("golden") or [{"prompt": f"Task: {version.task}."}])[0]
    answer, logprobs = await _ask(replica, version.name, golden["prompt"], PROBE_TOKENS_MAX, http)
    expected = golden.get("expected")
    if expected is not None and answer.strip() != str(expected).strip():
        raise ProbeError(f"{version.name} answers the golden prompt with {answer[:80]!r}, not {str(expected)[:80]!r}.")
    base_answer, base_logprobs = await _ask(replica, base_model, golden["prompt"], len(logprobs), http)
    same = all(abs(a - b) < LOGPROB_TOLERANCE for a, b in zip(logprobs, base_logprobs, strict=False))
    if answer == base_answer and same:
        raise ProbeError(f"{version.name} answers as the base model does: the engine does not apply it.")


async def _ask(
    replica: Replica, model: str, prompt: str, tokens: int, http: httpx.AsyncClient
) -> tuple[str, list[float]]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max(tokens, 1),
        "logprobs": True,
    }
    try:
        answer = await http.post(
            f"{replica.config.url}/v1/chat/completions",
            json=body,
            headers=engine_headers(replica),
            timeout=PROBE_TIMEOUT_SECONDS,
        )
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        tokens_told = (choice.get("logprobs") or {}).get("content") or []
        return str(choice["message"]["content"]), [float(token["logprob"]) for token in tokens_told]
    except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ProbeError(f"{replica.name} did not answer the golden prompt: {type(error).__name__}.") from error
