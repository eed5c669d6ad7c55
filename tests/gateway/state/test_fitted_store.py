"""Fitted models in Redis, and in the snapshot: what is put comes back, and what is damaged harms nothing."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.fitting.state import SAMPLE_KEY, WAIT_SECONDS_MAX, Samples, WaitingSample
from gateway.state.audited_step import AuditedStep
from gateway.state.fitted_store import FittedError, FittedStore, FittingStatus, is_calibrated_apart
from gateway.state.snapshot import ConfiguredPolicy, SnapshotKeeper
from monitoring.audit import Audit
from router.confidence_model import NAMES, Calibration, ConfidenceModel
from router.fitting_job import FittingLine
from router.model_bytes import MODEL_BYTES_MAX
from router.policy import AttemptLimits, TaskPolicy
from serving.adapters.registry import Registry
from serving.adapters.versions_and_aliases import Version
from serving.object_store import GENERATION_KEY, ObjectStore
from tests.walks.scope_world import model_of

V1 = "returns@v1"
CONFIDENCE = ConfidenceModel(
    (0.0,) * len(NAMES), 0.0, 0.5, Calibration(100, 0.1, (0, 100), (0.9, 0.0), (50, 100))
).to_json()
MODEL_KEY = "apprentice:fitted:model:returns@v1/coverage"


@pytest.fixture
def store(redis: Redis) -> FittedStore:
    """An empty store."""
    return FittedStore(redis)


def configured(selector: str = "user_turns") -> ConfiguredPolicy:
    """A file with the task `returns`."""
    task = TaskPolicy("returns", None, selector=selector)
    return ConfiguredPolicy({"returns": task}, frozenset({"general"}), AttemptLimits(), "general")


async def keeper_of(
    redis: Redis,
    damaged: Callable[[str], None] = lambda _: None,
    unsuited: Callable[[str], None] = lambda _: None,
) -> SnapshotKeeper:
    """A keeper of a state in which `returns@v1` leads its task."""
    version = Version(
        name=V1,
        task="returns",
        number=1,
        pool="small",
        state="ready",
        digest="",
        base_fingerprint="",
        rank=4,
        size_bytes=1,
        manifest={"task": "returns"},
        manifest_digest="",
        created_at=1.0,
        created_by="admin",
    )
    await ObjectStore(redis, "versions").put(V1, msgspec.to_builtins(version))
    await Registry(redis).promote("returns", V1)
    return SnapshotKeeper(redis, configured(), {}, lambda _: None, damaged, None, unsuited)


async def test_models_and_entries_of_older_releases_are_read_under_their_stored_names(store: FittedStore) -> None:
    entry = await store.put(V1, "scope", model_of("returns"), "admin", {})
    held = await store.object_store.get(f"{V1}/coverage")
    assert held is not None
    assert (held["kind"], held["digest"]) == ("coverage", entry.digest)
    stored = msgspec.json.decode(CONFIDENCE)
    assert (stored["names"][4], stored["coverage_mean"]) == ("coverage", 0.5)
    assert ConfidenceModel.from_json(CONFIDENCE).scope_mean == 0.5
    beside = await store.put(V1, "confidence", CONFIDENCE, "admin", {"coverage": "another digest"})
    assert is_calibrated_apart(beside, entry)


async def test_a_model_comes_back_as_it_was_put_and_each_change_has_a_generation(
    store: FittedStore, redis: Redis
) -> None:
    before = int(await redis.get(GENERATION_KEY) or 0)
    first = await store.put(V1, "scope", b"one", "admin", {"rows": 3})
    assert await store.get(V1, "scope") == b"one"
    assert await store.of(V1) == {"scope": first}
    second = await store.put(V1, "scope", b"two", "admin", {})
    assert await store.get(V1, "scope") == b"two"
    assert await store.bytes_of(first) is None, "another took its place"
    assert (await store.states(V1))["scope"].state == "ready"
    assert int(await redis.get(GENERATION_KEY)) == before + 2
    assert await redis.hlen(MODEL_KEY) == 1
    assert second.digest != first.digest
    await store.delete(V1)
    assert (await store.get(V1, "scope"), await store.shown(V1, None), await store.versions()) == (
        None,
        {},
        frozenset(),
    )
    assert not await redis.exists(MODEL_KEY)


@pytest.mark.parametrize("size", [0, MODEL_BYTES_MAX + 1])
async def test_a_model_without_bytes_or_with_too_many_is_refused(store: FittedStore, size: int) -> None:
    with pytest.raises(FittedError, match="may have 2,000,000"):
        await store.put(V1, "scope", bytes(size), "admin", {})
    assert await store.of(V1) == {}


async def test_how_far_a_fitting_is_is_told_to_people_and_raises_no_generation(
    store: FittedStore, redis: Redis
) -> None:
    await store.put(V1, "confidence", b"{}", "admin", {})
    before = await redis.get(GENERATION_KEY)
    await store.say(V1, "scope", FittingStatus(state="fitting", progress=0.5, stage="fitting", by="admin"))
    shown = await store.shown(V1, "user_turns")
    assert (shown["scope"]["progress"], shown["scope"]["model"]) == (0.5, None)
    assert shown["confidence"]["state"] == "ready"
    assert await redis.get(GENERATION_KEY) == before


async def test_the_snapshot_has_the_models_of_versions_that_serve_and_parses_each_once(redis: Redis) -> None:
    store, keeper = FittedStore(redis), await keeper_of(redis)
    await store.put(V1, "scope", model_of("returns"), "admin", {})
    await store.put("returns@v2", "scope", model_of("returns"), "admin", {})
    policy = (await keeper.refresh()).policy
    assert set(policy.fitted) == {V1}, "nothing serves by the other"
    assert policy.index is not None
    assert policy.auto_pool == "general"
    await ObjectStore(redis, "overrides").put("a", {"action": "general"})
    after = (await keeper.refresh()).policy
    assert after.generation > policy.generation
    assert after.fitted[V1] is policy.fitted[V1]
    assert after.index is policy.index
    await store.delete(V1)
    gone = (await keeper.refresh()).policy
    assert (dict(gone.fitted), gone.index) == ({}, None)


@pytest.mark.invariant("No damaged or failing model refuses a request.")
@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "foreign", "digest"])
async def test_a_damaged_model_is_counted_once_and_its_version_is_judged_without(redis: Redis, harm: str) -> None:
    counted: list[str] = []
    store, keeper = FittedStore(redis), await keeper_of(redis, counted.append)
    data = model_of("returns")
    if harm == "foreign":
        data = b"no model of ours"
    entry = await store.put(V1, "scope", data, "admin", {})
    if harm == "flip":
        await redis.hset(MODEL_KEY, entry.digest, data[:-9] + bytes(9))
    elif harm == "cut":
        await redis.hset(MODEL_KEY, entry.digest, data[:100])
    elif harm == "lose":
        await redis.delete(MODEL_KEY)
    elif harm == "digest":
        cut = await store.put(V1, "scope", data[:-20], "admin", {})
        assert cut.digest != entry.digest
    assert (await keeper.refresh()).policy.fitted == {}
    await ObjectStore(redis, "overrides").put("a", {"action": "general"})
    assert (await keeper.refresh()).policy.fitted == {}
    assert counted == ["scope"]
    state = (await store.states(V1))["scope"]
    assert (state.state, "fit it again" in state.error) == ("failed", True)
    await store.put(V1, "scope", model_of("returns"), "admin", {})
    assert set((await keeper.refresh()).policy.fitted) == {V1}


def step(redis: Redis) -> AuditedStep:
    found = AuditedStep(redis, Audit(redis), "admin")
    found.note("adapter.prompts", V1)
    return found


async def test_a_sample_that_was_replaced_meanwhile_still_waits(redis: Redis) -> None:
    samples = Samples(redis)
    one = WaitingSample(version=V1, digest="a", packed=b"one", by="admin", counts={"rows": 1})
    await samples.put(one, step(redis))
    assert await samples.first() == one
    await samples.put(msgspec.structs.replace(one, digest="b", packed=b"two"), step(redis))
    assert not await samples.drop(V1, "a")
    assert [await samples.begun(V1), await samples.begun(V1)] == [1, 2]
    assert (await samples.digest_of(V1), (await samples.first()) is not None) == ("b", True)
    assert await samples.drop(V1, "b")
    assert (await samples.digest_of(V1), await samples.first()) == (None, None)


async def test_a_sample_that_nothing_fits_goes_by_itself_and_is_told_once(redis: Redis) -> None:
    samples = Samples(redis)
    await samples.put(WaitingSample(version=V1, digest="a", packed=b"one", by="admin", counts={}), step(redis))
    assert 0 < await redis.ttl(f"{SAMPLE_KEY}{V1}") <= WAIT_SECONDS_MAX
    assert await samples.expired() == []
    await redis.delete(f"{SAMPLE_KEY}{V1}")
    assert await samples.begun(V1) == 1, "what notes that it begins leaves nothing behind"
    assert (await samples.first(), await samples.expired(), await samples.expired()) == (None, [V1], [])
    assert not [key async for key in redis.scan_iter("apprentice:prompts:*")]


async def test_prompts_of_erased_requests_leave_the_sample_that_waits(redis: Redis) -> None:
    samples, rows = Samples(redis), [FittingLine(f"Item {n}", f"r{n}") for n in range(3)]
    rows += [FittingLine("Item 1, please", "made", group="r1"), FittingLine("Hello", "r9", other=True)]
    packed = gzip.compress(b"\n".join(map(msgspec.json.encode, rows)))
    await samples.put(WaitingSample(version=V1, digest="a", packed=packed, by="admin", counts={}), step(redis))
    await samples.forget_requests({"r7"})
    before = await samples.first()
    await samples.forget_requests({"r1", "r9"})
    after = await samples.first()
    assert before is not None
    assert after is not None
    assert before.packed == packed
    left = [msgspec.json.decode(line, type=FittingLine) for line in gzip.decompress(after.packed).splitlines()]
    assert (after.digest, left) == ("a", [rows[0], rows[2]])
    assert 0 < await redis.ttl(f"{SAMPLE_KEY}{V1}") <= WAIT_SECONDS_MAX


async def test_after_a_fault_the_other_samples_go_first(redis: Redis) -> None:
    samples = Samples(redis)
    for version in (V1, "returns@v2"):
        await samples.put(WaitingSample(version=version, digest="a", packed=b"one", by="admin", counts={}), step(redis))
    assert [await samples.failed(V1), await samples.failed(V1)] == [1, 2]
    first = await samples.first()
    assert first is not None
    assert first.version == "returns@v2"


async def test_model_of_another_selector_is_logged_once_and_again_when_the_file_changes(redis: Redis) -> None:
    told: list[str] = []
    store, keeper = FittedStore(redis), await keeper_of(redis, unsuited=told.append)
    await store.put(V1, "scope", model_of("returns"), "admin", {"selector": "dialogue"})
    fitted = (await keeper.refresh()).policy.fitted[V1]
    assert (fitted.scope_for("user_turns"), fitted.scope_for("dialogue")) == (None, fitted.scope)
    await ObjectStore(redis, "overrides").put("a", {"action": "general"})
    await keeper.refresh()
    assert told == ["scope"]
    why = (await store.shown(V1, "user_turns"))["scope"]["unused"]
    assert why == "It was fitted with another selector (dialogue; the task has user_turns): fit it again."
    assert (await store.shown(V1, "dialogue"))["scope"]["unused"] is None
    keeper.apply_configuration(configured("dialogue"))
    keeper.apply_configuration(configured("last_user"))
    assert told == ["scope", "scope"]


async def test_confidence_is_used_only_beside_the_scope_model_of_its_calibration(
    redis: Redis,
) -> None:
    told: list[str] = []
    store, keeper = FittedStore(redis), await keeper_of(redis, unsuited=told.append)
    beside = await store.put(V1, "scope", model_of("returns"), "admin", {"selector": "user_turns"})
    await store.put(V1, "confidence", CONFIDENCE, "admin", {"scope": beside.digest})
    held = (await keeper.refresh()).policy.fitted[V1]
    assert held.confidence_for("user_turns") is held.confidence is not None
    same = {"selector": "user_turns", "scores_as": beside.digest}  # with other thresholds alone
    await store.put(V1, "scope", model_of("travel"), "admin", same)
    assert (await keeper.refresh()).policy.fitted[V1].confidence_for("user_turns") is held.confidence
    await store.put(V1, "scope", model_of("travel"), "admin", {"selector": "user_turns"})
    apart = (await keeper.refresh()).policy.fitted[V1]
    assert (apart.confidence_for("user_turns"), apart.calibrated_apart, told) == (None, True, ["confidence"])
    shown = await store.shown(V1, "user_turns")
    assert shown["confidence"]["unused"].startswith("No calibration: the scope model has changed.")
    await store.put(V1, "confidence", CONFIDENCE, "admin", {"scope": None})
    assert (await keeper.refresh()).policy.fitted[V1].calibrated_apart, "it was calibrated without any"
    await store.delete(V1, "scope")
    assert (await keeper.refresh()).policy.fitted[V1].confidence_for("user_turns") is not None
