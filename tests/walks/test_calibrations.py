"""Models that an evaluation fits: confidence from a calibration, and learned routing from both arms."""

from __future__ import annotations

import json

import httpx
import pytest

from gateway.state.fitted_store import FittedStore
from router.confidence_model import ConfidenceModel
from tests.fakes.answers import WORDS, Speaker, say
from tests.fakes.engine import FakeEngine
from tests.fakes.lora import adapter_digest
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1
from tests.walks.test_evaluate import PATH, asked_number, begin, data, ended, ready, until_in_force

__all__ = ["ready"]


async def test_a_calibration_gives_the_version_a_confidence_model(ready: RunningGateway, small: FakeEngine) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(150))
        await ended(http, begun["id"])
        asked = small.requests_total
        await begin(http, data(150), status=200, calibrate=True)
        report = (await ended(http, begun["id"]))["report"]
        assert small.requests_total == asked, "the rows were answered already"
        found = report["calibration"]
        assert (found["rows"], found["error"], len(found["targets"])) == (150, None, 20)
        assert found["targets"][-1]["certified"]
        assert not found["targets"][0]["certified"]
        assert found["routed"][0] == {"general_share": 0.0, "adapter_wrong_share": 0.1, "wrong_share": 0.1}
        assert found["routed"][-1]["wrong_share"] == pytest.approx(38 / 150, abs=1e-5)
        await until_in_force(ready)
        kept = await FittedStore(ready.services.redis).get(V1, "confidence")
        assert kept is not None
        assert ConfidenceModel.from_json(kept).threshold(0.2) is not None
        entry = (await FittedStore(ready.services.redis).of(V1))["confidence"]
        assert entry.summary["scope"] is None, "there is no scope model that it goes with"

        async def in_force() -> bool:
            fitted = ready.services.snapshot.current.policy.fitted.get(V1)
            return fitted is not None and fitted.confidence is not None

        await until(in_force)


def told_by(engine: FakeEngine, word: str) -> float:
    """The confidence of the version's adapter in a word."""
    speaker = Speaker(V1, adapter_digest(engine.adapters.registered[V1].path))
    return say(speaker, {"messages": []}, 0, 1, word).logprobs[0]


async def test_from_a_calibration_on_unsure_answers_go_to_general(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    task = {"commit": "complete", "checks": {"low_confidence": {"mode": "enforce", "wrong_share_max": 0.1}}}
    async with run_gateway(configure(tasks={"returns": task})) as running, running.http() as http:
        await running.place(make_adapter(1))
        unsure, *_, sure = sorted(WORDS, key=lambda word: told_by(small, word))
        small.answers[V1] = lambda body: unsure if asked_number(body) % 10 == 0 else sure
        general.answers["*"] = sure
        rows = b"".join(json.dumps({"text": f"Item {n}", "expected": sure}).encode() + b"\n" for n in range(200))
        begun = await begin(http, rows, calibrate=True)
        target = (await ended(http, begun["id"]))["report"]["calibration"]["target"]
        assert (target["certified"], target["kept_share"]) == (True, 0.9)

        async def reasons() -> bool:
            return [await reason_of(http, number) for number in (1, 10)] == ["adapter", "low_confidence"]

        await until(reasons)


async def reason_of(http: httpx.AsyncClient, number: int) -> str:
    messages = [{"role": "user", "content": f"Item {number}"}]
    answer = await http.post("/v1/chat/completions", json={"model": "returns", "messages": messages})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-apprentice-reason"]


async def test_learned_routing_is_fitted_from_both_arms_and_kept_with_what_it_is_worth(ready: RunningGateway) -> None:
    async with ready.http() as http:
        begun = await begin(http, data(240), fit_gain=True)
        found = (await ended(http, begun["id"]))["report"]["gain"]
        assert (found["rows"], found["error"]) == (240, None)
        assert found["shown_to_help"] is False, "general is right less often"
        await until_in_force(ready)
        fitted = (await http.get(f"/admin/v1/adapters/{V1}")).json()["fitted"]["gain"]
        assert (fitted["model"]["summary"]["shown_to_help"], fitted["model"]["summary"]["rows"]) == (False, 240)
        assert (fitted["model"]["summary"]["selector"], fitted["unused"]) == ("user_turns", None)

        async def in_force() -> bool:
            known = ready.services.snapshot.current.policy.fitted.get(V1)
            return known is not None and known.gain is not None

        await until(in_force)


async def test_too_few_rows_for_a_calibration_are_refused_before_anything_is_asked(ready: RunningGateway) -> None:
    rows = [json.loads(line) for line in data(20).splitlines()]
    copies = [row | {"id": f"{row['id']}-{n}"} for row in rows for n in range(6)]
    async with ready.http() as http:
        for sent, said in ((rows, "have 20. "), (copies, "have 20 (of 120: of equal ones")):
            raw = b"".join(json.dumps(row).encode() + b"\n" for row in sent)
            refused = await begin(http, raw, status=400, calibrate=True)
            assert f"needs 100 different rows at least, and the data {said}" in refused["error"]["message"]
        assert (await http.get(PATH)).json()["evaluations"] == []


async def test_copies_count_once_in_a_calibration(ready: RunningGateway) -> None:
    async with ready.http() as http:
        rows = [json.loads(line) for line in data(150).splitlines()]
        copies = [row | {"id": f"{row['id']}-{n}"} for row in rows for n in range(4)]
        begun = await begin(http, b"".join(json.dumps(row).encode() + b"\n" for row in copies), calibrate=True)
        report = (await ended(http, begun["id"]))["report"]
        assert (report["rows"], report["groups"]) == (600, 150)
        found = report["calibration"]
        assert (found["rows"], found["groups"], found["error"]) == (600, 150, None)
        await until_in_force(ready)
        kept = await FittedStore(ready.services.redis).get(V1, "confidence")
        assert kept is not None
        assert ConfidenceModel.from_json(kept).calibration.rows == 150
