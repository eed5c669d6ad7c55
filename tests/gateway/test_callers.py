from __future__ import annotations

import ast
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway import callers
from gateway.callers import (
    Caller,
    CallerLimits,
    Former,
    KnownKeys,
    digest_of,
    identify,
    join_key,
    new_key,
    new_secret,
    require,
    split_key,
)
from gateway.errors import Problem
from gateway.roles import ROLES

NOW = 1_800_000_000.0
CHAT = "/v1/chat/completions"


def holder(expires_at: float | None = None, role: callers.Role = "caller") -> tuple[str, Caller]:
    key, public, digest = new_key()
    return key, Caller(public, "shop", role, digest, frozenset({"returns"}), expires_at)


def refusal(authorization: str | None, *known: Caller, now: float = NOW) -> Problem:
    with pytest.raises(Problem) as raised:
        identify({caller.public: caller for caller in known}, authorization, now, CHAT)
    assert raised.value.status == 401
    assert raised.value.code == "invalid_api_key"
    return raised.value


def test_a_key_identifies_its_holder() -> None:
    key, caller = holder()
    assert identify({caller.public: caller}, f"Bearer {key}", NOW, CHAT) is caller
    assert identify({caller.public: caller}, f"bearer  {key} ", NOW, CHAT) is caller


def test_keys_have_the_announced_form_and_never_repeat() -> None:
    keys = {new_key()[0] for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        parts = split_key(key)
        assert parts is not None
        public, secret = parts
        assert key == f"sk-app-{public}-{secret}"
        assert (len(public), len(secret)) == (12, 43)


def test_what_is_kept_of_a_key_holds_no_secret() -> None:
    key, caller = holder()
    parts = split_key(key)
    assert parts is not None
    assert parts[1] not in repr(caller)
    assert parts[1] not in str(caller.to_json())
    assert Caller.from_json(caller.public, caller.to_json()) == caller


def test_a_key_ends_at_the_second_at_which_it_expires() -> None:
    key, caller = holder(expires_at=NOW)
    assert identify({caller.public: caller}, f"Bearer {key}", NOW - 0.001, CHAT) is caller
    assert "expired" in refusal(f"Bearer {key}", caller).message
    assert "expired" in refusal(f"Bearer {key}", caller, now=NOW + 1).message


def test_an_expired_key_is_told_so_only_to_whoever_has_it() -> None:
    _, caller = holder(expires_at=NOW - 1)
    assert "expired" not in refusal(f"Bearer sk-app-{caller.public}-guess", caller).message


def test_another_ones_secret_does_not_fit() -> None:
    (mine, one), (theirs, other) = holder(), holder()
    secret = mine.rpartition(f"{one.public}-")[2]
    refusal(f"Bearer sk-app-{other.public}-{secret}", one, other)
    refusal(theirs, one, other)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer sk-proj-abcdefghijkl-secret",
        "Bearer sk-app-",
        "Bearer sk-app-abcdefghijkl",
        "Bearer sk-app-abcdefghijkl-",
        "Bearer sk-app-short-secret",
        "Bearer sk-app-abcdefghijklm-secret",
        "Bearer sk-app-abc/efghijkl-secret",
        "Bearer sk-app-abcdefghijkl-" + "x" * 200,
        "sk-app-abcdefghijkl-secret",
        "Bearer Bearer sk-app-abcdefghijkl-secret",
    ],
)
def test_what_is_no_key_is_refused(authorization: str | None) -> None:
    refusal(authorization, holder()[1])


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=300))
def test_no_header_at_all_breaks_the_check(said: str) -> None:
    refusal(f"Bearer {said}", holder()[1])
    refusal(said, holder()[1])


@pytest.mark.invariant("No error, log or representation shows a secret.")
def test_no_refusal_repeats_what_was_sent() -> None:
    key, caller = holder()
    for said in (f"Bearer {key}x", f"Bearer {key[:-1]}", f"Basic {key}"):
        problem = refusal(said, caller)
        assert key[8:] not in problem.message
        assert key[8:].encode() not in problem.body()


def test_secrets_are_compared_in_constant_time_also_where_the_caller_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[str, str]] = []
    real = callers.hmac.compare_digest

    def watching(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(callers.hmac, "compare_digest", watching)
    key, caller = holder()
    identify({caller.public: caller}, f"Bearer {key}", NOW, CHAT)
    refusal(f"Bearer {key}")
    assert [one for one, _ in compared] == [caller.secret_digest] * 4, "the former secret too"


def test_nothing_compares_a_digest_with_an_equals_sign() -> None:
    compared = [
        ast.unparse(node) for node in ast.walk(ast.parse(inspect.getsource(callers))) if isinstance(node, ast.Compare)
    ]
    assert not [text for text in compared if "digest" in text]


def test_both_secrets_of_a_rotated_key_work_until_the_second_the_overlap_ends() -> None:
    key, before = holder()
    secret, digest = new_secret()
    caller = replace(before, secret_digest=digest, former=Former(before.secret_digest, NOW))
    known = {caller.public: caller}
    for each in (key, join_key(caller.public, secret)):
        assert identify(known, f"Bearer {each}", NOW - 0.001, CHAT) is caller
    assert identify(known, f"Bearer {join_key(caller.public, secret)}", NOW, CHAT) is caller
    assert "not known" in refusal(f"Bearer {key}", caller, now=NOW).message
    assert Caller.from_json(caller.public, caller.to_json()) == caller


def test_limits_are_kept_and_an_entry_from_before_there_were_any_is_read() -> None:
    _, caller = holder()
    assert set(caller.to_json()) == {"name", "role", "secret_digest", "models", "expires_at"}
    limited = replace(caller, limits=CallerLimits(requests_per_minute=60, usd_per_day=0.5))
    assert limited.to_json()["limits"] == {"requests_per_minute": 60, "usd_per_day": 0.5}
    assert Caller.from_json(caller.public, limited.to_json()) == limited
    assert Caller.from_json(caller.public, {**limited.to_json(), "limits": {}}) == caller


def test_roles_are_required_by_name() -> None:
    for role in ROLES:
        _, caller = holder(role=role)
        assert require(caller, role) is caller
    _, caller = holder(role="operator")
    with pytest.raises(Problem) as raised:
        require(caller, "admin")
    assert (raised.value.status, raised.value.code) == (403, "role_required")


def test_a_caller_judges_its_own_requests_and_an_operator_all() -> None:
    _, caller = holder()
    assert caller.judges == caller.public
    assert holder(role="operator")[1].judges == "*"
    assert holder(role="admin")[1].judges == "*"
    assert holder(role="sidecar")[1].judges != "*"


@pytest.mark.parametrize(
    ("role", "path", "is_let_in"),
    [
        ("reviewer", "/v1/reviews/next", True),
        ("reviewer", "/v1/feedback", True),
        ("reviewer", "/console", True),
        ("reviewer", CHAT, False),
        ("reviewer", "/v1/requests", False),
        ("reviewer", "/admin/v1/callers", False),
        ("sidecar", "/admin/v1/store/abc/manifest.yaml", True),
        ("sidecar", "/v1/reviews/next", False),
        ("caller", "/admin/v1/callers", True),
    ],
)
def test_some_roles_are_let_in_at_their_addresses_alone(role: callers.Role, path: str, is_let_in: bool) -> None:
    key, caller = holder(role=role)
    known = {caller.public: caller}
    if is_let_in:
        assert identify(known, f"Bearer {key}", NOW, path) is caller
    else:
        with pytest.raises(Problem, match="and nothing else") as raised:
            identify(known, f"Bearer {key}", NOW, path)
        assert (raised.value.status, raised.value.code) == (403, "role_required")


def test_a_digest_is_not_the_secret() -> None:
    assert digest_of("secret") != "secret"
    assert digest_of("secret") == digest_of("secret")
    assert digest_of("secret") != digest_of("Secret")


def header_of(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_a_known_key_is_found_by_its_header_alone_and_no_other_is() -> None:
    known, (key, caller), (other, _) = KnownKeys(), holder(), holder()
    there = {caller.public: caller}
    assert known.find(there, header_of(key), NOW) is None
    known.keep(header_of(key), caller, NOW)
    assert known.find(there, header_of(key), NOW) is caller
    for header in (header_of(other), header_of(key)[:-1], header_of(key) + b"x", header_of(key).lower(), b""):
        assert known.find(there, header, NOW) is None


def test_a_known_key_is_forgotten_once_the_callers_have_changed() -> None:
    known, (key, caller) = KnownKeys(), holder()
    there = {caller.public: caller}
    known.find(there, header_of(key), NOW)
    known.keep(header_of(key), caller, NOW)
    for changed in ({}, {caller.public: replace(caller, secret_digest="another")}, dict(there)):
        assert known.find(changed, header_of(key), NOW) is None
    assert known.find(there, header_of(key), NOW) is None, "it does not come back with the former callers"


def test_a_known_key_is_looked_at_again_when_it_or_its_former_secret_expires() -> None:
    for fields in ({"expires_at": NOW + 9}, {"former": Former("digest", NOW + 9)}):
        known, (key, caller) = KnownKeys(), holder()
        caller = replace(caller, **fields)
        there = {caller.public: caller}
        known.find(there, header_of(key), NOW)
        known.keep(header_of(key), caller, NOW)
        assert known.find(there, header_of(key), NOW + 8.9) is caller
        assert known.find(there, header_of(key), NOW + 9) is None
        known.keep(header_of(key), replace(caller, expires_at=None), NOW + 9)
        assert known.find(there, header_of(key), NOW + 1e9) is not None, "a former secret that is over ends nothing"


def test_known_keys_are_bounded_and_hold_no_secret() -> None:
    known, (key, caller) = KnownKeys(), holder()
    there = {caller.public: caller}
    known.find(there, b"", NOW)
    for number in range(callers.KNOWN_KEYS_MAX + 1):
        known.keep(b"%d" % number, caller, NOW)
    assert len(known._entries) <= callers.KNOWN_KEYS_MAX
    known.keep(header_of(key), caller, NOW)
    parts = split_key(key)
    assert parts is not None
    assert parts[1] not in repr(known.__dict__)
