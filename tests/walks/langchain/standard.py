"""LangChain's standard integration tests, pointed at a gateway; tests/walks/test_langchain.py runs them.

GATEWAY_URL and GATEWAY_KEY say where it is, and by which key. They are pytest's classes in an environment of their own.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

URL, KEY = os.environ["GATEWAY_URL"], os.environ["GATEWAY_KEY"]


class ChatTests(ChatModelIntegrationTests):
    """All that chat models have in common."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "returns", "base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "stream_usage": True}

    @property
    def model_override_value(self) -> str:
        return "returns@v1"

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestChat(ChatTests):
    """Chat completions."""


class TestResponses(ChatTests):
    """Responses."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class TestMessages(ChatTests):
    """Anthropic's messages."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "returns", "base_url": URL, "api_key": KEY, "max_retries": 0, "max_tokens": 200}

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class TestEmbeddings(EmbeddingsIntegrationTests):
    """Embeddings, of texts: by default the client sends tokens of OpenAI's own models."""

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "general", "base_url": f"{URL}/v1", "api_key": KEY, "check_embedding_ctx_length": False}
