from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from gateway.callers import new_key
from gateway.cli.admin_client import KEY_VARIABLE, URL_VARIABLE
from gateway.configuration.settings import COMMAND_LINE_VARIABLES, Settings, load_settings
from gateway.errors import SettingsError
from router.policy import AttemptLimits
from tests.style.source import ROOT

POOL = {"base_model": "base", "replicas": [{"name": "general-0", "url": "http://127.0.0.1:8101"}]}
LEAST: dict[str, Any] = {"pools": {"general": POOL}}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("APPRENTICE_")]:
        monkeypatch.delenv(name)


def loaded(folder: Path, content: Any) -> Settings:
    path = folder / "apprentice.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_settings(path)


def said(folder: Path, content: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        loaded(folder, content)
    return str(raised.value)


def with_pool(**changes: Any) -> dict[str, Any]:
    return {"pools": {"general": {**POOL, **changes}}}


def test_the_least_configuration_is_one_pool(tmp_path: Path) -> None:
    settings = loaded(tmp_path, LEAST)
    assert settings.listen.port == 8080
    assert settings.tasks == {}
    (pool,) = settings.pool_configs()
    assert (pool.name, pool.replicas[0].pool, pool.replicas[0].url) == ("general", "general", "http://127.0.0.1:8101")


def test_the_configuration_in_the_repository_is_valid() -> None:
    settings = load_settings(ROOT / "apprentice.yaml")
    assert settings.tasks["returns"].fallback_pool == "general"


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    text = said(tmp_path, "pools:\n  general: {base_model: base}\n  small: {}\n  general: {base_model: other}\n")
    assert "'general' comes twice" in text
    assert "apprentice.yaml:4:3: " in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks: {returns: {exit_pool: general}}", "tasks.returns.exit_pool: this key is called fallback_pool now"),
        ("tasks: {returns: {rungs: {}}}", "tasks.returns.rungs: this key is called checks now"),
        ("limits: {slice_share: 0.5}", "limits.slice_share: this key is called quota_share now"),
    ],
)
def test_key_of_an_earlier_release_gets_the_name_of_the_new_one(tmp_path: Path, text: str, told: str) -> None:
    assert told in said(tmp_path, text)


def test_address_without_its_scheme_is_refused_with_an_example(tmp_path: Path) -> None:
    told = said(tmp_path, with_pool(replicas=[{**POOL["replicas"][0], "url": "127.0.0.1:8101"}]))  # type: ignore[index]
    assert "pools.general.replicas.0.url: an address is needed, such as http://127.0.0.1:8000" in told


def test_variable_that_nobody_replaces_is_refused_with_its_key(tmp_path: Path) -> None:
    told = said(tmp_path, {**with_pool(api_key="${THEIR_KEY}"), "data_folder": "${DATA}"})
    for key in ("data_folder", "pools.general.api_key"):
        assert f"{key}: a variable is not replaced here" in told
    assert loaded(tmp_path, with_pool(api_key="a ${key} of theirs")).pools["general"].api_key is not None


def test_nothing_changes_after_the_start(tmp_path: Path) -> None:
    settings = loaded(tmp_path, LEAST)
    with pytest.raises(ValidationError):
        settings.log_level = "DEBUG"
    with pytest.raises(ValidationError):
        settings.limits.retries_max = 9


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({**LEAST, "poools": {}}, "poools"),
        ({**LEAST, "limits": {"retries": 1}}, "limits.retries"),
        ({**LEAST, "listen": {"adress": "x"}}, "listen.adress"),
        (with_pool(prize=1), "pools.general.prize"),
        (with_pool(replicas=[{**POOL["replicas"][0], "weight": 1}]), "pools.general.replicas.0.weight"),  # type: ignore[index]
        ({**LEAST, "tasks": {"returns": {"exit": "general"}}}, "tasks.returns.exit"),
        ({**LEAST, "feedback_metrics": {"ok": {"kind": "boolean", "best": 1}}}, "feedback_metrics.ok.best"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_key_is_named(tmp_path: Path, content: Any, place: str) -> None:
    assert f"{place}: unknown key" in said(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({**LEAST, "limits": {"in_flight_max": True}}, "limits.in_flight_max: a number is needed, and this is true"),
        ({**LEAST, "snapshot_interval_seconds": True}, "snapshot_interval_seconds: a number is needed"),
        ({**LEAST, "processes": True}, "processes: a number is needed"),
        (with_pool(context_tokens_max=True), "pools.general.context_tokens_max: a number is needed"),
        ({**LEAST, "limits": {"retries_max": False}}, "limits.retries_max: a number is needed, and this is false"),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_a_switch_in_the_place_of_a_number_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    assert told in said(tmp_path, content)
    assert loaded(tmp_path, with_pool(callable=True)).pools["general"].callable


def test_all_unknown_keys_are_named_at_once(tmp_path: Path) -> None:
    told = said(tmp_path, {**LEAST, "one": 1, "two": 2})
    assert "one: unknown key" in told
    assert "two: unknown key" in told


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({}, "pools"),
        ({"pools": {}}, "pools"),
        ({**LEAST, "listen": {"port": 65536}}, "listen.port"),
        ({**LEAST, "limits": {"request_timeout_seconds": 0}}, "limits.request_timeout_seconds"),
        ({**LEAST, "limits": {"retries_max": 11}}, "limits.retries_max"),
        ({**LEAST, "limits": {"retries_max": "many"}}, "limits.retries_max"),
        ({**LEAST, "log_level": "loud"}, "log_level"),
        ({**LEAST, "data_folder": "s3://bucket/data"}, "data_folder: this is an address"),
        ({**LEAST, "records": {"archive_folder": "ftp://host/records"}}, "records.archive_folder: this is an address"),
        ({**LEAST, "tasks": {"Returns!": {}}}, "tasks.Returns!"),
        (with_pool(replicas=[]), "pools.general.replicas"),
        (with_pool(replicas=[{"name": "g", "url": "localhost:8101"}]), "pools.general.replicas.0.url"),
        (with_pool(replicas=[{"name": "g", "url": "http://h/v1"}]), "pools.general.replicas.0.url"),
        (with_pool(base_fingerprint="abc"), "pools.general.base_fingerprint"),
        (with_pool(price={"prompt_usd_per_million_tokens": -1}), "pools.general.price"),
        (with_pool(price={"prompt_usd_per_million_tokens": 1}), "pools.general.price"),
    ],
    ids=str,
)
def test_a_value_that_can_not_be_used_is_named(tmp_path: Path, content: Any, place: str) -> None:
    assert place in said(tmp_path, content)


def test_replicas_have_names_of_their_own(tmp_path: Path) -> None:
    assert "general-0" in said(tmp_path, {"pools": {"general": POOL, "small": POOL}})


def test_pools_that_are_named_exist(tmp_path: Path) -> None:
    assert "no pool 'big'" in said(tmp_path, {**LEAST, "general_pool": "big"})
    assert "tasks.returns.fallback_pool" in said(tmp_path, {**LEAST, "tasks": {"returns": {"fallback_pool": "big"}}})
    assert (
        loaded(tmp_path, {**LEAST, "tasks": {"returns": {"fallback_pool": None}}}).tasks["returns"].fallback_pool
        is None
    )


def test_a_task_and_a_pool_that_can_be_named_have_different_names(tmp_path: Path) -> None:
    assert "tasks.general: a task and a callable pool can't share a name" in said(
        tmp_path, {**with_pool(callable=True), "tasks": {"general": {}}}
    )
    loaded(tmp_path, {**with_pool(callable=False), "tasks": {"general": {}}})


def test_the_shared_settings_of_bodies_reach_tasks_and_pools(tmp_path: Path) -> None:
    body = {"parameters_allowed": ["ignore_eos", "roles"], "n_max": 3}
    body |= {"unknown_fields": "drop", "max_tokens_over": "clamp"}
    settings = loaded(tmp_path, with_pool(**body) | {"tasks": {"returns": body}})
    found = settings.tasks["returns"].policy("returns"), settings.pools["general"].limits(64, "none")
    for policy in found:
        assert (policy.parameters_allowed, policy.n_max) == (frozenset({"ignore_eos", "roles"}), 3)
        assert (policy.unknown_fields, policy.max_tokens_over) == ("drop", "clamp")
    assert [policy.adapters for policy in found] == [True, False]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_pool(parameters_allowed=["ignore_eof"]), "pools.general.parameters_allowed: 'ignore_eof' is no such"),
        (LEAST | {"tasks": {"returns": {"parameters_allowed": ["prompt_logprobs"]}}}, "tasks.returns.parameters_al"),
        (with_pool(parameters_allowed=["prompt_logprobs"], base_folder="/m"), "pools.general.parameters_allowed: pro"),
        (
            LEAST | {"tasks": {"returns": {"parameters_allowed": ["kv_transfer_params.prompt_token_ids"]}}},
            "tasks.returns.parameters_allowed: prompt_token_ids can't be allowed",
        ),
    ],
    ids=["unknown", "task", "pool with adapters", "prompt_token_ids"],
)
def test_fields_that_can_not_be_allowed_stop_the_start(tmp_path: Path, content: Any, words: str) -> None:
    assert words in said(tmp_path, content)


def test_a_pool_without_adapters_may_allow_logprobs_of_prompts(tmp_path: Path) -> None:
    loaded(tmp_path, with_pool(parameters_allowed=["prompt_logprobs", "echo"]))


@pytest.mark.parametrize("content", ["- a\n- b\n", "just text\n", "7\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    assert "not a mapping" in said(tmp_path, content)


NOT_YAML = ["a: [\n", "a: b: c\n", "\ta: 1\n", 1000 * "[", "a: 2026-02-30\n", "a: !!int b\n", "a: &b [*b]\n"]


@pytest.mark.parametrize("content", [*NOT_YAML, f"a: {5000 * '9'}\n", "a: &b {c: *b}\n"])
def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path, content: str) -> None:
    assert "not YAML" in said(tmp_path, content)


def test_a_file_that_is_no_text_in_utf_8_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "apprentice.yaml"
    path.write_text("pools: {}\n", encoding="utf-16")
    with pytest.raises(SettingsError, match="is not text in UTF-8: save it as such"):
        load_settings(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


def test_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "a key that is not text" in said(tmp_path, "1: 2\n")


def test_the_environment_wins_over_the_file_at_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("APPRENTICE_LIMITS__RETRIES_MAX", "1")
    monkeypatch.setenv("APPRENTICE_TASKS__RETURNS__N_MAX", "3")
    content = {**LEAST, "log_level": "ERROR", "limits": {"backoff_seconds": 0.5}, "tasks": {"returns": {"n_max": 2}}}
    settings = loaded(tmp_path, content)
    assert settings.log_level == "DEBUG"
    assert (settings.limits.retries_max, settings.limits.backoff_seconds) == (1, 0.5)
    assert settings.tasks["returns"].n_max == 3


@pytest.mark.parametrize("name", ["APPRENTICE_LOG_LEVLE", "APPRENTICE_LIMITS__RETRIES", "APPRENTICE_X__Y"])
def test_an_unknown_variable_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    told = said(tmp_path, LEAST).upper()
    assert name.rpartition("_")[2] in told


@pytest.mark.parametrize("name", ["APPRENTICE_POOLS", "APPRENTICE_LIMITS", "APPRENTICE_LIMITS__RETRIES_MAX"])
def test_a_variable_that_can_not_be_read_is_an_error_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "nonsense")
    assert name.removeprefix("APPRENTICE_").split("__")[-1].lower() in said(tmp_path, LEAST).lower()


def test_the_variables_of_the_command_line_stop_no_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {URL_VARIABLE, KEY_VARIABLE} == COMMAND_LINE_VARIABLES
    for name in COMMAND_LINE_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:8080")
    loaded(tmp_path, LEAST)


@pytest.mark.parametrize("name", ["APPRENTICE_KEYS", "APPRENTICE_ADMIN_KEY__FILE", "APPRENTICE_PROCESSES__MAX"])
def test_an_unknown_variable_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert f"{name} names no setting: unset it, or name one of" in said(tmp_path, LEAST)


def test_an_empty_address_of_redis_is_a_fault_and_not_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPRENTICE_REDIS_URL", "")
    assert "APPRENTICE_REDIS_URL: redis_url: it is not an address such as" in said(tmp_path, LEAST)


def test_variables_of_others_are_none_of_our_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "nonsense")
    monkeypatch.setenv("APPRENTICESHIP", "3 years")
    loaded(tmp_path, LEAST)


@pytest.mark.invariant("No error, log or representation shows a secret.")
def test_secrets_are_shown_nowhere(tmp_path: Path) -> None:
    key = new_key()[0]
    content = {**with_pool(api_key="engine-secret"), "admin_key": key, "redis_url": "redis://:hunter2@localhost"}
    shown = repr(loaded(tmp_path, content))
    assert key not in shown
    assert "hunter2" not in shown
    assert "engine-secret" not in shown


def test_an_error_repeats_no_secret(tmp_path: Path) -> None:
    told = said(tmp_path, {**LEAST, "admin_key": "sk-app-not-a-key"})
    assert "admin_key" in told
    assert "sk-app-not-a-key" not in told


@pytest.mark.parametrize("key", ["short", "", "A" * 44, "ä" * 44, "-----BEGIN PUBLIC KEY-----"])
def test_a_trusted_key_that_is_none_is_told_at_the_start_with_its_signer(tmp_path: Path, key: str) -> None:
    told = said(tmp_path, {**LEAST, "signing": {"trusted": {"returns-team": key}}})
    assert "signing.trusted.returns-team: A public key is 32 bytes in base64, 44 characters: take the line" in told


def test_a_replica_has_its_pools_key_unless_it_has_its_own(tmp_path: Path) -> None:
    replicas = [{"name": "a", "url": "http://a"}, {"name": "b", "url": "http://b", "api_key": "own"}]
    (pool,) = loaded(tmp_path, with_pool(api_key="shared", replicas=replicas)).pool_configs()
    assert [replica.api_key for replica in pool.replicas] == ["shared", "own"]


def test_bound_of_an_event_is_by_default_that_of_the_answer(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {**LEAST, "limits": {"answer_bytes_max": 2048}})
    assert settings.limits.attempts().event_bytes_max == 2048


def test_limits_and_tasks_reach_the_router_whole(tmp_path: Path) -> None:
    limits = {"retries_max": 4, "event_bytes_max": 4096}
    content = {**LEAST, "limits": limits, "tasks": {"returns": {"commit": "complete", "n_max": 3}}}
    settings = loaded(tmp_path, content)
    attempts = settings.limits.attempts()
    assert attempts.retries_max == 4
    assert {name: getattr(settings.limits, name) for name in AttemptLimits.__dataclass_fields__} == {
        name: getattr(attempts, name) for name in AttemptLimits.__dataclass_fields__
    }
    task = settings.tasks["returns"].policy("returns")
    assert (task.name, task.commit, task.n_max, task.fallback_pool) == ("returns", "complete", 3, "general")


def test_the_store_is_in_the_data_folder_unless_it_is_elsewhere(tmp_path: Path) -> None:
    assert loaded(tmp_path, {**LEAST, "data_folder": "/data"}).store == Path("/data/store")
    assert loaded(tmp_path, {**LEAST, "store_folder": "/store"}).store == Path("/store")


@pytest.mark.parametrize(
    "shipped", ["apprentice.yaml", "monitoring/provisioning/gateway.yaml", "k8s/chart/values.yaml"]
)
def test_whatever_is_shipped_enforces_the_gate(shipped: str) -> None:
    content = yaml.safe_load((ROOT / shipped).read_text(encoding="utf-8"))
    assert content.get("config", content)["release"]["gate"] == "enforce"
