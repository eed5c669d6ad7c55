from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.adapters.placement import (
    HELD,
    PLACEMENT_STATES,
    Capacity,
    Listed,
    Placement,
    PlacementState,
    Sight,
    Step,
    map_by_place,
    next_step,
    read_placement,
)

NOW = 10_000.0
DRAIN_SECONDS = 600.0
PASSES_MAX = 20
STEPS_THAT_CALL: frozenset[Step] = frozenset({"load", "probe", "unload"})
many = settings(max_examples=max(500, settings().max_examples))

times = st.sampled_from([0.0, 1.0, NOW - DRAIN_SECONDS - 1, NOW - DRAIN_SECONDS, NOW - 5, NOW, NOW + 5, NOW + 120])
lives = st.sampled_from(["", "life-1", "life-2"])
fingerprints = st.sampled_from(["", "print-1", "print-2"])
states: st.SearchStrategy[PlacementState] = st.sampled_from(PLACEMENT_STATES)
listings: st.SearchStrategy[Listed] = st.sampled_from(("here", "elsewhere", "not"))


def placed(state: PlacementState, **changed: object) -> Placement:
    kept = Placement(replica="small-0", version="returns@v1", state=state, path="/store/1", life="life-1")
    return msgspec.structs.replace(kept, **({"fingerprint": "print-1", "since": NOW - 5} | changed))


placements = st.builds(
    Placement,
    replica=st.just("small-0"),
    version=st.just("returns@v1"),
    state=states,
    path=st.just("/store/1"),
    life=lives,
    fingerprint=fingerprints,
    since=times,
    ghosts=st.integers(0, 3),
    failures=st.integers(0, 3),
    retry_at=times,
    wrong=st.booleans(),
)
maybe_placements = st.none() | placements
sights = st.builds(
    Sight,
    wanted=st.booleans(),
    listed=listings,
    life=lives,
    fingerprint=fingerprints,
    idle=st.booleans(),
    now=st.just(NOW),
    asked_at=times,
    drain_seconds_max=st.just(DRAIN_SECONDS),
)
ALL_STEPS = {"none", "load", "probe", "reopen", "close", "drain", "unload", "ghost", "lost", "forget", "block"}


def is_of_another_life(placement: Placement | None, sight: Sight) -> bool:
    return placement is not None and bool(placement.life and sight.life) and placement.life != sight.life


@many
@given(maybe_placements, sights)
def test_every_situation_has_one_step(placement: Placement | None, sight: Sight) -> None:
    step = next_step(placement, sight)
    assert step in ALL_STEPS
    assert next_step(placement, sight) == step


@many
@given(maybe_placements, sights)
def test_a_name_that_the_engine_lists_is_never_loaded(placement: Placement | None, sight: Sight) -> None:
    if sight.listed != "not":
        assert next_step(placement, sight) != "load"


@many
@given(maybe_placements, sights)
def test_a_load_or_a_probe_is_only_for_what_is_wanted(placement: Placement | None, sight: Sight) -> None:
    if next_step(placement, sight) in ("load", "probe", "reopen", "block"):
        assert sight.wanted


@many
@given(placements, sights)
def test_what_is_not_ours_is_never_touched(placement: Placement, sight: Sight) -> None:
    for kept in (None, placement):
        assert next_step(kept, replace(sight, listed="elsewhere")) in ("none", "forget", "lost", "block")


@many
@given(maybe_placements, sights)
def test_nothing_is_drained_while_a_lease_is_held_and_time_is_left(placement: Placement | None, sight: Sight) -> None:
    """Unwanted versions are unloaded from `drained` on only, and `drained` is reached by `drain` alone."""
    step = next_step(placement, sight)
    if step == "drain":
        assert placement is not None
        assert placement.state == "closing"
        assert sight.idle or sight.now - placement.since > sight.drain_seconds_max
    if step == "unload" and not sight.wanted:
        assert placement is not None
        assert placement.state in ("drained", "unloading")
        assert placement.retry_at <= sight.now


@many
@given(placements, sights)
def test_an_engine_that_was_started_anew_voids_all_that_was_written_of_it(placement: Placement, sight: Sight) -> None:
    placement = msgspec.structs.replace(placement, life="life-1")
    assert next_step(placement, replace(sight, life="life-2")) == "lost"


@many
@given(maybe_placements, sights)
def test_what_is_ready_stays_so_in_a_life_it_was_probed_in_or_one_that_is_unknown(
    placement: Placement | None, sight: Sight
) -> None:
    sight = replace(sight, wanted=True, listed="here")
    assume(not is_of_another_life(placement, sight))
    if next_step(placement, sight) in ("none", "reopen"):
        assert placement is not None
        waits = placement.state in ("failed", "unknown") and placement.retry_at > sight.now
        used = placement.state == "failed" and not sight.idle
        proven = placement.fingerprint == sight.fingerprint and sight.life in ("", placement.life)
        assert waits or used or proven


@many
@given(placements, sights)
def test_what_failed_is_not_tried_again_before_its_time(placement: Placement, sight: Sight) -> None:
    sight = replace(sight, wanted=True, life=placement.life, asked_at=min(sight.asked_at, placement.since))
    for state in ("failed", "unknown"):
        waiting = msgspec.structs.replace(placement, state=state, retry_at=NOW + 1)
        assert next_step(waiting, replace(sight, listed="not")) == "none"
        assert next_step(waiting, replace(sight, listed="here")) == "none"


def test_staged_anew_it_is_tried_at_once() -> None:
    failed = placed("failed", retry_at=NOW + 100, since=NOW - 5)
    sight = Sight(True, "not", "life-1", "print-1", True, NOW, asked_at=NOW - 1)
    assert next_step(failed, sight) == "load"
    assert next_step(failed, replace(sight, asked_at=NOW - 10)) == "none"


@pytest.mark.parametrize("state", ["probing", "ready", "closing", "drained", "unloading"])
def test_what_was_there_and_is_listed_no_more_is_counted_as_a_ghost(state: PlacementState) -> None:
    """Also from `unloading`: the gateway may have died between the engine's answer and its own note."""
    assert next_step(placed(state), Sight(False, "not", "life-1", "print-1", True, NOW)) == "ghost"


class Engine:
    """An engine that obeys, and what is written down of one version on it, step by step as the loader does."""

    def __init__(self, placement: Placement | None, sight: Sight) -> None:
        self.placement = placement
        self.sight = sight
        self.steps: list[Step] = []

    def go_on(self, passes: int = PASSES_MAX) -> None:
        """Steps until there is none left; where one waits, what it waits for happens."""
        for _ in range(passes):
            step = next_step(self.placement, self.sight)
            if step == "none" or (step == "block" and self._is("failed")):
                if self._is_at_rest():
                    return
                self.sight = replace(self.sight, idle=True, now=self.sight.now + 1000)
            else:
                self.steps.append(step)
                self._take(step)
        raise AssertionError(f"it does not come to an end: {self.steps}")

    def _is(self, state: PlacementState) -> bool:
        return self.placement is not None and self.placement.state == state

    def _is_at_rest(self) -> bool:
        if self.sight.listed == "elsewhere":
            return self.placement is None or self._is("failed") or self._is("ghost")
        if self.sight.wanted:
            return self._is("ready") and self.sight.listed == "here"
        return self.sight.listed == "not" and (self.placement is None or self._is("ghost"))

    def _take(self, step: Step) -> None:
        if step == "load":
            assert self.sight.listed == "not"
            self._write("loading")
            self.sight = replace(self.sight, listed="here")
        elif step == "probe":
            self._write("ready", fingerprint=self.sight.fingerprint)
        elif step == "unload":
            self._write("ghost", ghosts=self._ghosts() + 1)
            self.sight = replace(self.sight, listed="not")
        elif step == "ghost":
            self._write("ghost", ghosts=self._ghosts() + 1)
        elif step == "block":
            self._write("failed", retry_at=self.sight.now + 15)
        elif step == "lost":
            self.placement = None
        elif step == "forget":
            if self._ghosts():
                self._write("ghost", ghosts=self._ghosts())
            else:
                self.placement = None
        else:
            self._write({"reopen": "ready", "close": "closing", "drain": "drained"}[step])

    def _ghosts(self) -> int:
        return self.placement.ghosts if self.placement else 0

    def _write(self, state: PlacementState, **changed: object) -> None:
        before = self.placement or placed(state, fingerprint="")
        told = {"state": state, "life": self.sight.life, "since": self.sight.now, "retry_at": 0.0, **changed}
        self.placement = msgspec.structs.replace(before, **told)


@many
@given(maybe_placements, sights)
def test_what_is_wanted_becomes_ready_wherever_it_stood(placement: Placement | None, sight: Sight) -> None:
    assume(sight.listed != "elsewhere")
    engine = Engine(placement, replace(sight, wanted=True))
    engine.go_on()
    assert engine.placement is not None
    assert (engine.placement.state, engine.placement.fingerprint) == ("ready", sight.fingerprint)
    assert engine.sight.listed == "here"
    assert engine.steps.count("load") <= 1 + engine.steps.count("unload")


@many
@given(maybe_placements, sights)
def test_what_is_not_wanted_comes_to_be_absent_or_a_ghost(placement: Placement | None, sight: Sight) -> None:
    assume(sight.listed != "elsewhere")
    engine = Engine(placement, replace(sight, wanted=False))
    engine.go_on()
    assert engine.placement is None or engine.placement.state == "ghost"
    assert engine.sight.listed == "not"
    assert "load" not in engine.steps


@many
@given(maybe_placements, sights)
def test_no_step_is_repeated_for_ever(placement: Placement | None, sight: Sight) -> None:
    engine = Engine(placement, sight)
    engine.go_on()
    assert all(engine.steps.count(step) <= 2 for step in STEPS_THAT_CALL)


@many
@given(maybe_placements, sights)
def test_other_bytes_under_the_name_come_to_rest_without_a_call(placement: Placement | None, sight: Sight) -> None:
    engine = Engine(placement, replace(sight, listed="elsewhere"))
    engine.go_on()
    assert not STEPS_THAT_CALL & set(engine.steps)
    assert engine.placement is None or engine.placement.state in ("ghost", "failed")


@many
@given(maybe_placements, sights, st.lists(st.booleans(), max_size=8))
def test_a_mind_changed_at_any_moment_ends_where_it_was_changed_to(
    placement: Placement | None, sight: Sight, wishes: list[bool]
) -> None:
    assume(sight.listed != "elsewhere")
    engine = Engine(placement, sight)
    for wanted in wishes:
        engine.sight = replace(engine.sight, wanted=wanted)
        step = next_step(engine.placement, engine.sight)
        if step != "none":
            engine._take(step)
    engine.go_on()
    state = engine.placement.state if engine.placement else "absent"
    assert state == "ready" if engine.sight.wanted else state in ("absent", "ghost")


@given(placements)
def test_a_placement_is_read_back_as_it_was_written(placement: Placement) -> None:
    raw = msgspec.json.decode(msgspec.json.encode(placement.to_json()))
    read = read_placement(placement.key, raw)
    assert map_by_place([read]) == {("small-0", "returns@v1"): placement}


def test_only_states_on_the_way_to_ready_hold_a_replica() -> None:
    assert {"loading", "probing", "ready", "unknown"} == HELD


@many
@given(st.integers(1, 8), st.integers(2, 64), st.integers(0, 80), st.integers(0, 80))
def test_the_loads_left_fill_the_engine_up_to_one_free_place(
    max_loras: int, max_cpu_loras: int, registered: int, ghosts: int
) -> None:
    full = Capacity(max_loras, max_cpu_loras, registered, ghosts)
    assert full.places == max_cpu_loras - 1
    assert 0 <= full.loads_left <= full.places
    if full.loads_left:
        assert registered + ghosts + full.loads_left == full.places
        assert replace(full, registered=registered + 1).loads_left == full.loads_left - 1
    else:
        assert registered + ghosts >= full.places


@many
@given(st.integers(2, 64), st.integers(0, 80), st.integers(0, 80))
def test_an_unload_gives_no_place_free_before_its_ghost_is_gone(max_cpu_loras: int, names: int, ghosts: int) -> None:
    before = Capacity(4, max_cpu_loras, names + 1, ghosts)
    assert replace(before, registered=names, ghosts=ghosts + 1).loads_left == before.loads_left


def test_a_placement_that_an_earlier_release_wrote_is_read() -> None:
    raw = {"replica": "small-0", "version": "a@v1", "state": "ready", "path": "/store/a", "stack": "print-1"}
    placement = read_placement("small-0/a@v1", raw)
    assert placement.fingerprint == "print-1"
    assert placement.to_json()["stack"] == "print-1"


@pytest.mark.parametrize(
    ("state", "wanted", "listed", "step"),
    [("failed", True, "not", "load"), ("unknown", True, "here", "probe"), ("unloading", False, "here", "unload")],
)
def test_a_clock_that_is_set_back_keeps_no_next_try_waiting_for_hours(
    state: PlacementState, wanted: bool, listed: Listed, step: Step
) -> None:
    sight = Sight(wanted=wanted, listed=listed, life="life-1", fingerprint="print-1", idle=True, now=NOW)
    assert next_step(placed(state, retry_at=NOW + 60.0), sight) == "none"
    assert next_step(placed(state, retry_at=NOW + 7200.0, since=NOW + 7140.0), sight) == step
