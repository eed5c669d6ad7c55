"""A fake engine: a real HTTP server that behaves like vLLM 0.32 with adapters loaded at runtime, faults included.

In a test: `async with FakeEngine("base-model") as engine: ... engine.url`. By hand, or to be killed:
`python -m tests.fakes.engine --port 0 --model base-model`, whose first line is its URL.
What it does wrong on demand is in tests/fakes/faults.py. `/__faults` and `/__state` are its own and need no key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from tests.fakes.answers import Said, Speaker, Wording, digest_of, embeddings_of, prompt_tokens
from tests.fakes.bodies import OPENAI_FIELDS, check_options, read_json_object, read_json_or_nothing, read_name, refusal
from tests.fakes.fault_rules import Faults, fault_name
from tests.fakes.faults import COMPLETIONS, Fault, Moment, ends_with_assistant, error_body, missing_model, send_error
from tests.fakes.lora import AdapterLost, Adapters, Refused, adapter_digest
from tests.fakes.metrics import Count, exposition
from tests.fakes.run import EngineDied, Run, Seen
from tests.fakes.wire import AnswerOver, Exchange, HttpListener
from tests.waiting import DEADLINE_SECONDS, until

__all__ = ["Call", "FakeEngine", "Seen", "adapter_digest"]

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
OWN = "/__"


@dataclass(frozen=True)
class Call:
    """A request to anything but the completions, and the status it got; None if it got none."""

    method: str
    path: str
    body: Mapping[str, Any]
    status: int | None


class FakeEngine:
    """One engine process. All options are attributes too, and may be changed while it runs."""

    def __init__(
        self,
        model: str = "base-model",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        version: str = "0.32.0",
        model_root: str = "/models/base-model",
        api_key: str | None = None,
        max_loras: int = 4,
        max_cpu_loras: int = 16,
        max_lora_rank: int = 16,
        max_model_len: int = 2048,
        n_tokens: int = 16,
        first_token_delay_seconds: float = 0.0,
        token_delay_seconds: float = 0.0,
        load_delay_seconds: float = 0.0,
        continue_final_message: bool = True,
        auto_tool_choice: bool = False,
        dies_with_lost_adapter: bool = True,
        requests_kept: int = 1000,
        bare: bool = False,
        base_path: str = "/v1",
        models_status: int = 404,
        tells_usage: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        # what it was started with
        self.model = model
        self.version = version
        self.model_root = model_root
        self.api_key = api_key
        self.max_loras = max_loras
        self.max_cpu_loras = max_cpu_loras
        self.max_lora_rank = max_lora_rank
        self.max_model_len = max_model_len
        self.n_tokens = n_tokens
        self.first_token_delay_seconds = first_token_delay_seconds
        self.token_delay_seconds = token_delay_seconds
        self.load_delay_seconds = load_delay_seconds
        self.continue_final_message = continue_final_message
        self.auto_tool_choice = auto_tool_choice
        self.dies_with_lost_adapter = dies_with_lost_adapter
        self.bare = bare
        """True: it has no more than OpenAI's completions, with any model's name; `models_status` is its answer to
        GET /models, `base_path` what its paths begin with instead of /v1."""
        self.base_path = base_path
        self.models_status = models_status
        self.tells_usage = tells_usage
        # what a test sets and sees; it outlives a restart
        self.faults = Faults()
        self.answers: dict[str, Wording] = {}
        """Model name (or `*`) → its answer, or a function of the request's body; else a text of the engine's own."""
        self.twists: dict[str, Callable[[Said], None]] = {}
        """Model name (or `*`) → what is changed of each alternative before it is sent: logprobs, tool, refusal, end."""
        self.not_applied: set[str] = set()
        """Adapters that are listed like others, and answer as the base model: their layers are not in it."""
        self.requests: deque[Seen] = deque(maxlen=requests_kept)
        self.calls: deque[Call] = deque(maxlen=requests_kept)
        self.requests_total = 0
        self.calls_total = 0
        """Calls since the first start that were not completions."""
        # what one start of the engine has; a restart loses it
        self.started_at = time.time()
        self.dead = False
        self.draining = False
        self.in_flight = 0
        self.count = Count()
        self.adapters = self._no_adapters()
        self.ended = asyncio.Event()
        """Set when the engine has stopped listening by itself: it died, or drained to its end."""
        self._died = asyncio.Event()
        self._http = HttpListener(self._handle, host, port, tls)
        self._dying: asyncio.Task[None] | None = None
        self.url = f"{'https' if tls else 'http'}://{host}:{self._http.port}"

    async def __aenter__(self) -> Self:
        await self._http.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self._http.release()
        if self._http.crashes:
            raise AssertionError("the fake engine itself has a bug:\n" + self._http.crashes[0])

    # What a test asks and does

    @property
    def port(self) -> int:
        """The port, which stays the same through restarts."""
        return self._http.port

    @property
    def listening(self) -> bool:
        """True while connections are accepted."""
        return self._http.listening

    @property
    def cancelled(self) -> list[Seen]:
        """Completion requests whose caller hung up, oldest first."""
        return [seen for seen in self.requests if seen.outcome == "cancelled"]

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._http.connections)

    @property
    def connections_opened(self) -> int:
        """Connections accepted since the first start."""
        return self._http.connections_opened

    async def until(self, condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
        """Wait for a condition. Raises AssertionError."""
        await until(condition, seconds=seconds)

    def load(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load an adapter as the endpoint does, without the way over HTTP. Raises Refused."""
        self.adapters.load(name, os.fspath(path))

    def speaks(self, model: str) -> Speaker:
        """The speaker for a model's name: its default text begins `<name>#<first 6 of the digest> says:`."""
        adapter = self.adapters.registered.get(model)
        return Speaker(model, digest_of(model) if adapter is None else adapter_digest(adapter.path))

    async def kill(self) -> None:
        """As kill -9: every connection is dropped and new ones are refused."""
        if self._dying is not None:
            self._dying.cancel()
            await asyncio.gather(self._dying, return_exceptions=True)
        await self._http.stop()

    async def restart(self) -> None:
        """Kill it if it runs, and start it again on the same port. Adapters, drain and death are gone; faults stay."""
        await self.kill()
        self.dead = self.draining = False
        self.count = Count()
        self.adapters = self._no_adapters()
        self._died.clear()
        self.ended.clear()
        self.started_at = time.time()
        await self._http.start()

    def drain(self) -> None:
        """As SIGTERM with --shutdown-timeout: what runs finishes, /health stays 200, new completions get 500."""
        self.draining = True

    async def shut_down(self, timeout_seconds: float = 0.0) -> None:
        """Drain, wait for what runs, at most so long, and stop. At 0 what runs is cut off at once."""
        self.drain()
        with contextlib.suppress(AssertionError):  # it took longer
            await self.until(lambda: self.in_flight == 0, timeout_seconds)
        await self.kill()
        self.ended.set()

    def die(self) -> None:
        """As when the engine's core dies: running streams get an error event and [DONE], others 500; then it
        fallbacks."""
        self.dead = True
        self._died.set()
        if self._dying is None or self._dying.done():
            self._dying = asyncio.get_running_loop().create_task(self._exit())

    # What a caller meets

    async def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        if self.base_path != "/v1" and not request.path.startswith(OWN):
            below = request.path.removeprefix(self.base_path)
            path = f"/v1{below}" if below != request.path else "/elsewhere"
            request = exchange.request = replace(request, path=path)
        if request.path.startswith(OWN):
            await self._own(exchange)
        elif self.api_key and request.path.startswith("/v1") and not self._has_key(request.headers):
            await exchange.whole(401, {"error": "Unauthorized"})
        elif request.path in COMPLETIONS and request.method == "POST":
            await self._completion(exchange)
        else:
            await self._control(exchange)

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(key.encode(), str(self.api_key).encode())

    async def _own(self, exchange: Exchange) -> None:
        method, path = exchange.request.method, exchange.request.path
        if path == "/__faults":
            if method == "POST":
                try:
                    self.faults.add_json(json.loads(exchange.request.body))
                except (ValueError, KeyError, TypeError) as error:
                    await exchange.whole(400, error_body(400, f"Not a fault: {error!r}", "BadRequestError"))
                    return
            elif method == "DELETE":
                self.faults.clear()
            rules = [{**asdict(rule), "faults": [repr(fault) for fault in rule.faults]} for rule in self.faults.rules]
            await exchange.whole(200, {"rules": rules})
            return
        seen = [
            {
                "id": one.request_id,
                "model": one.model,
                "outcome": one.outcome,
                "tokens": one.tokens,
                "at": one.at,
                "goes_on": ends_with_assistant(one.body),
            }
            for one in self.requests
        ]
        told = {"pid": os.getpid(), "in_flight": self.in_flight, "requests_total": self.requests_total}
        await exchange.whole(200, {**told, "connections": self.connections, "requests": seen})

    async def _control(self, exchange: Exchange) -> None:
        request = exchange.request
        self.calls_total += 1
        status: int | None = None
        body: dict[str, Any] = {}
        try:
            if request.body:
                body = read_json_object(request.body)
            moment, faults = self._faults(exchange, body, str(body.get("lora_name") or ""))
            for fault in faults:
                await fault.on_request(moment)
            status, answer = await self._control_answer(request.method, request.path, body)
            for fault in faults:
                await fault.before_headers(moment)
        except Refused as error:
            status, answer = error.status, error.body
        except (AnswerOver, asyncio.CancelledError):
            self.calls.append(Call(request.method, request.path, body, None))
            raise
        self.calls.append(Call(request.method, request.path, body, status))
        if isinstance(answer, str):
            kind = "text/plain; charset=utf-8" if answer else ""
            await exchange.whole(status, answer.encode(), content_type=kind)
        else:
            await exchange.whole(status, answer)

    async def _control_answer(
        self, method: str, path: str, body: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any] | str]:
        if self.bare:
            error = error_body(self.models_status, "It is not there.", "invalid_request_error")
            if (method, path) != ("GET", "/v1/models"):
                return 404, error
            return self.models_status, {"object": "list", "data": []} if self.models_status == 200 else error
        match method, path:
            case "GET", "/health":
                return (503 if self.dead else 200), ""
            case "POST", "/v1/embeddings":
                return 200, embeddings_of(body)
            case "POST", "/tokenize":
                self._see_that_it_knows(str(body.get("model") or ""))
                tokens = list(range(prompt_tokens(body)))
                told = {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
                return 200, told | {"token_strs": None}
            case "GET", "/version":
                return 200, {"version": self.version}
            case "GET", "/metrics":
                return 200, exposition(self)
            case "GET", "/v1/models":
                return 200, {"object": "list", "data": self._cards()}
            case "POST", "/v1/load_lora_adapter":
                in_place = bool(body.get("load_inplace"))
                return 200, await self._load(read_name(body, "lora_name"), read_name(body, "lora_path"), in_place)
            case "POST", "/v1/unload_lora_adapter":
                return 200, self.adapters.unload(read_name(body, "lora_name"))
            case _, "/v1/load_lora_adapter" | "/v1/unload_lora_adapter":
                return 405, {"detail": "Method Not Allowed"}
            case "POST", "/adapters":
                return 200, await self._load(read_name(body, "name"), read_name(body, "src"), False)
            case "DELETE", _ if path.startswith("/adapters/"):
                return 200, self.adapters.unload(path.removeprefix("/adapters/"))
        return 404, {"detail": "Not Found"}

    async def _load(self, name: str, path: str, in_place: bool) -> str:
        if self.load_delay_seconds:
            await asyncio.sleep(self.load_delay_seconds)
        return self.adapters.load(name, path, in_place)

    def _cards(self) -> list[dict[str, Any]]:
        base = self._card(self.model, self.model_root, None, self.max_model_len)
        loaded = self.adapters.registered.values()
        return [base, *(self._card(one.name, one.path, self.model, None) for one in loaded)]

    def _card(self, name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(self.started_at),
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": length,
            "permission": [],
        }

    async def _completion(self, exchange: Exchange) -> None:
        request = exchange.request
        seen = Seen(request.path, request.headers, read_json_or_nothing(request.body), request.body, time.monotonic())
        self.requests.append(seen)
        self.requests_total += 1
        self.in_flight += 1
        try:
            moment, faults = self._faults(exchange, seen.body, seen.model)
            for fault in faults:
                await fault.on_request(moment)
            await self._answer(exchange, seen, moment, faults)
            seen.outcome = "done"
        except Refused as error:
            seen.outcome = "refused"
            await exchange.whole(error.status, error.body)
        except AnswerOver as over:
            seen.outcome = over.outcome
            raise
        except asyncio.CancelledError:
            seen.outcome = "failed" if exchange.ended_by_us else "cancelled"
            raise
        finally:
            seen.ended_at = time.monotonic()
            self.in_flight -= 1
            if seen.outcome in ("cancelled", "failed"):
                self.count.finished["abort" if seen.outcome == "cancelled" else "error"] += 1

    def _faults(self, exchange: Exchange, body: Mapping[str, Any], model: str) -> tuple[Moment, tuple[Fault, ...]]:
        rule = self.faults.on(exchange.request.path, model)
        moment = Moment(exchange, body, time.monotonic() if rule is None else rule.first_at)
        return moment, () if rule is None else rule.faults

    async def _answer(self, exchange: Exchange, seen: Seen, moment: Moment, faults: tuple[Fault, ...]) -> None:
        self._accept(seen)
        adapter = self.adapters.registered.get(seen.model)
        run = Run(self, exchange, seen, moment, faults, adapter)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if adapter is not None:
                    await stack.enter_async_context(self.adapters.slot(adapter))
                    self.count.adapters_ran[",".join(self.adapters.running)] = time.time()
                await (run.streamed() if moment.stream else run.whole())
        except AdapterLost as error:
            if self.dies_with_lost_adapter:
                self.die()
            await send_error(moment, DEAD if self.dies_with_lost_adapter else str(error))
        except EngineDied:
            await send_error(moment, DEAD)

    def _accept(self, seen: Seen) -> None:
        """Raises Refused as vLLM does before anything runs."""
        if self.dead or self.draining:
            raise Refused(500, DEAD, "InternalServerError")
        if "json" not in seen.headers.get("content-type", ""):
            raise refusal("Unsupported Media Type: Only 'application/json' is allowed", None)
        body = read_json_object(seen.raw)
        for key, kind in (("messages", list), ("prompt", (str, list))):
            if (key == "messages") == seen.path.endswith("chat/completions") and not isinstance(body.get(key), kind):
                raise refusal(f"{{'type': 'missing', 'loc': 'body.{key}', 'msg': 'Field required'}}", f"body.{key}")
        unknown = sorted(body.keys() - OPENAI_FIELDS) if self.bare else []
        if unknown:
            raise Refused(400, f"Unrecognized request argument supplied: {unknown[0]}", "invalid_request_error")
        self._see_that_it_knows(seen.model)
        prefills, auto = self.continue_final_message, self.auto_tool_choice
        check_options(body, self.max_model_len, prefills=prefills, auto_tool_choice=auto, bare=self.bare)

    def _see_that_it_knows(self, model: str) -> None:
        known = model in ("", self.model) or model in self.adapters.registered or fault_name(model)
        if not known and not self.bare:
            missing = missing_model(model, self.model)["error"]
            raise Refused(404, missing["message"], missing["type"], missing["param"])

    async def rest(self, seconds: float) -> None:
        """Let time pass inside an answer. Raises EngineDied as soon as the engine dies."""
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._died.wait()
        if self.dead:
            raise EngineDied

    async def _exit(self) -> None:
        """The dead engine's end: what is still to be told is told first."""
        with contextlib.suppress(AssertionError):  # it took longer
            await self.until(lambda: self.in_flight == 0, 1.0)
        await self._http.stop()
        self.ended.set()

    def _no_adapters(self) -> Adapters:
        return Adapters(self.model, self.max_loras, self.max_cpu_loras, self.max_lora_rank)


async def _serve(options: argparse.Namespace) -> None:
    told = vars(options)
    shutdown_timeout_seconds = told.pop("shutdown_timeout")
    faults = told.pop("fault")
    async with FakeEngine(**told) as engine:
        for wanted in faults:
            engine.faults.add_json(json.loads(wanted) if wanted.startswith("{") else {"name": wanted})
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        sys.stdout.write(engine.url + "\n")
        sys.stdout.flush()
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, engine.ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if stop.is_set():
            await engine.shut_down(shutdown_timeout_seconds)


def main() -> None:
    """The command: prints the URL, then serves until SIGTERM, SIGINT or its own death; all end with code 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.engine", description=main.__doc__)
    parser.add_argument("--model", default="base-model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--version", default="0.32.0")
    parser.add_argument("--model-root", default="/models/base-model")
    parser.add_argument("--api-key")
    for name, default in (("loras", 4), ("cpu-loras", 16), ("lora-rank", 16), ("model-len", 2048)):
        parser.add_argument(f"--max-{name}", type=int, default=default)
    parser.add_argument("--n-tokens", type=int, default=16)
    for name in ("first-token-delay-seconds", "token-delay-seconds", "load-delay-seconds"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--no-continue-final-message", dest="continue_final_message", action="store_false")
    parser.add_argument("--auto-tool-choice", action="store_true")
    parser.add_argument("--bare", action="store_true", help="no more than OpenAI's completions, with any model's name")
    parser.add_argument("--base-path", default="/v1")
    parser.add_argument("--shutdown-timeout", type=float, default=0.0, help="seconds that what runs may finish in")
    parser.add_argument("--fault", action="append", default=[], help="a name as f04-503-forever, or a rule in JSON")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
