"""Kinds of engines: one row of traits for each. All differences between kinds are in these rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

EngineKind = Literal["vllm", "openai", "openai_cloud"]
"""Kinds of engines. `openai` is any of which only OpenAI's API is known. `openai_cloud` is OpenAI's own, whose newer
models refuse `max_tokens`; many others know only that name."""
FormName = Literal["json_schema", "choices", "regex"]
"""Forms of an answer, as contracts name them."""
FORM_NAMES: tuple[FormName, ...] = get_args(FormName)
SchemaFields = Callable[[Any], Mapping[str, Any]]
"""The fields of a wire format that ask for an answer by a JSON schema."""


@dataclass(frozen=True, slots=True)
class AdapterApi:
    """The adapter API of a kind of engine: its paths, the fields of their bodies, and how it says its capacity."""

    load_path: str
    unload_path: str
    name_field: str
    path_field: str
    max_loras_metric: re.Pattern[str]
    """Finds the adapters of one batch in the engine's metrics, as its first group."""
    advice: str
    """Advice if adapters can't be loaded at runtime."""

    def load_body(self, name: str, path: str) -> dict[str, str]:
        """The body that loads an adapter."""
        return {self.name_field: name, self.path_field: path}

    def unload_body(self, name: str) -> dict[str, str]:
        """The body that unloads an adapter."""
        return {self.name_field: name}


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """All that the gateway knows of one kind of engine."""

    api_path: str
    """Path from a replica's `url` to OpenAI's API. Empty: `url` leads there itself, and may have a path."""
    health_path: str | None
    """Path of its health check, beside `version_path` and `metrics_path`; None: any answer says that it is up."""
    adapter_api: AdapterApi | None
    """Its adapter API; None: it takes no adapters."""
    own_fields: frozenset[str] | None
    """Fields that it knows besides OpenAI's; None: all that the gateway knows."""
    fields_unknown: frozenset[str]
    """Fields of OpenAI's API that it does not know, and does not get."""
    stream_options: frozenset[str]
    """Options of a stream that it knows besides `include_usage`."""
    answer_form: Callable[[FormName, Any, SchemaFields], Mapping[str, Any]]
    """The fields that ask for a form, from its name, its value, and the wire format; empty if it has none."""
    keeps_forms: bool
    """True if its answers keep all forms. If not, a fallback is not asked for a contract's form."""
    bound_field: str | None = None
    """The field of a chat that bounds its answer, under which `max_tokens` is sent; None: unchanged."""
    health_interval_seconds: float | None = None
    """Seconds between two looks, if longer than the gateway's: its owner may count or bill them."""
    tokenize_path: str | None = None
    """Path that counts the tokens of a chat, from a replica's `url`; None: it counts none."""
    version_path: str = "/version"
    metrics_path: str = "/metrics"
    started_metric: re.Pattern[str] = re.compile(r"^process_start_time_seconds\s+(\S+)", re.MULTILINE)
    """Finds the start of its process in its metrics, as its first group."""


VLLM_FORMS: Mapping[FormName, str] = MappingProxyType({"json_schema": "json", "choices": "choice", "regex": "regex"})


def _vllm_form(name: FormName, value: Any, schema_fields: SchemaFields) -> Mapping[str, Any]:
    return {"structured_outputs": {VLLM_FORMS[name]: value}}


def _openai_form(name: FormName, value: Any, schema_fields: SchemaFields) -> Mapping[str, Any]:
    return schema_fields(value) if name == "json_schema" else {}


OPENAI = EngineTraits(
    api_path="",
    health_path=None,
    adapter_api=None,
    own_fields=frozenset(),
    fields_unknown=frozenset(),
    stream_options=frozenset({"include_obfuscation"}),
    answer_form=_openai_form,
    keeps_forms=False,
    health_interval_seconds=15.0,
)
ENGINE_TRAITS: Mapping[EngineKind, EngineTraits] = MappingProxyType(
    {
        "vllm": EngineTraits(
            api_path="/v1",
            health_path="/health",
            adapter_api=AdapterApi(
                load_path="/v1/load_lora_adapter",
                unload_path="/v1/unload_lora_adapter",
                name_field="lora_name",
                path_field="lora_path",
                max_loras_metric=re.compile(r'^vllm:lora_requests_info\{[^}]*max_lora="(\d+)"', re.MULTILINE),
                advice="Start the engine with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
            ),
            own_fields=None,
            fields_unknown=frozenset(
                {"verbosity", "modalities", "prediction", "prompt_cache_retention", "prompt_cache_options"}
            ),
            stream_options=frozenset({"continuous_usage_stats"}),
            answer_form=_vllm_form,
            keeps_forms=True,
            tokenize_path="/tokenize",
        ),
        "openai": OPENAI,
        "openai_cloud": replace(OPENAI, bound_field="max_completion_tokens"),
    }
)
"""The traits of each kind."""
