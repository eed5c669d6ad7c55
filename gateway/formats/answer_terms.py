"""The terms of an answer by its task's checks, and the fields that engines are sent for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from gateway.formats.request_body import RequestBody
from router.answers import Offered, Terms
from router.checks import AFTER_THE_ANSWER, CHECK_BY_NAME
from router.contract import Contract, ContractError, compile_contract
from router.findings import CheckName, CheckPolicy
from router.fitted import OTHER_SCOPE
from router.policy import Policy
from router.routing_data import Choice, Scores
from router.tool_arguments import Parameters, read_parameters
from serving.engine_traits import ENGINE_TRAITS, FORM_NAMES
from serving.fleet_view import VersionView

if TYPE_CHECKING:
    from router.confidence_model import ConfidenceModel
    from router.policy import TaskPolicy

log = logging.getLogger(__name__)
CONTRACTS_MAX = 256
THRESHOLDS_MAX = 4096
NOTHING: Mapping[str, Any] = MappingProxyType({})


class _Function(msgspec.Struct, gc=False):
    name: str
    parameters: Raw = Raw(b"{}")


class _Custom(msgspec.Struct, gc=False):
    name: Any = None


class _Tool(msgspec.Struct, gc=False):
    function: _Function | None = None
    custom: _Custom | None = None


_TOOLS = msgspec.json.Decoder(list[_Tool])


@dataclass(frozen=True, slots=True)
class Demands:
    """The terms of one attempt's answer, and the fields that they add to the engine's request.

    `strips`: only the gateway asked for the logprobs, so the caller does not get them.
    """

    terms: Terms
    fields: Mapping[str, Any]
    strips: bool = False

    def tokens_judged(self, tokens: float) -> int:
        """Number of first tokens of each alternative that an enforced confidence check judges, if `tokens` are held
        back.

        0 if the check does not judge them.
        """
        model = self.terms.confidence
        if model is None or model.tokens is None or model.tokens > tokens:
            return 0
        return model.tokens if self.terms.enforces("low_confidence") else 0


class TermsMaker:
    """Makes the terms of answers. It owns costly values that many answers share: compiled contracts, and thresholds."""

    def __init__(self) -> None:
        self._contracts: dict[str, Contract | None] = {}
        self._thresholds: dict[tuple[str, float], tuple[ConfidenceModel, float | None]] = {}

    def contract_of(self, version: VersionView) -> Contract | None:
        """A version's contract, compiled once; None if it has no usable contract."""
        if version.contract is None:
            return None
        if version.manifest_digest not in self._contracts:
            _make_room(self._contracts, CONTRACTS_MAX)
            self._contracts[version.manifest_digest] = _compiled(version.contract)
        return self._contracts[version.manifest_digest]

    def contract_kept(self, version: VersionView, text: str) -> bool | None:
        """True if a text keeps the version's contract; None if the version has none."""
        contract = self.contract_of(version)
        return None if contract is None else contract.broken_by(text) is None

    def form(self, body: RequestBody, choice: Choice) -> Mapping[str, Any]:
        """The fields that make this choice's engine answer only in the contract's form; empty if it need not."""
        version = choice.version or choice.general_prompt_of
        return NOTHING if choice.task is None or version is None else _form(choice.task, body, choice, version)

    def make_demands(self, policy: Policy, body: RequestBody, choice: Choice, scores: Scores) -> Demands | None:
        """Make the terms of this choice's answer; None if there are no terms and no fields to add.

        All checks judge an adapter's answer. Only an enforced contract judges a fallback's answer. A request out of
        scope was not the task's job: there the contract of the fallback's answer is only observed.
        """
        task = choice.task
        if task is None or not (task.constrained or task.checks):
            return None
        version = choice.version or choice.general_prompt_of
        if version is None:
            return None
        checks = {name: check for name, check in task.checks.items() if name in AFTER_THE_ANSWER}
        if choice.version is None:
            checks = {
                name: check
                for name, check in checks.items()
                if CHECK_BY_NAME[name].judges_fallbacks and check.mode == "enforce"
            }
        if is_foreign(choice) and "contract" in checks:
            checks["contract"] = replace(checks["contract"], mode="observe")
        fields = dict(_form(task, body, choice, version))
        if not checks:
            return Demands(Terms({}), fields) if fields else None
        contract = self.contract_of(version)
        if "low_confidence" not in checks:
            return Demands(Terms(checks, contract), fields)
        return self._with_confidence(policy, task.selector, body, version, checks, contract, scores, fields)

    def _with_confidence(
        self,
        policy: Policy,
        selector: str,
        body: RequestBody,
        version: VersionView,
        checks: Mapping[CheckName, CheckPolicy],
        contract: Contract | None,
        scores: Scores,
        fields: dict[str, Any],
    ) -> Demands:
        fitted = policy.fitted.get(version.name)
        if fitted is None or fitted.confidence is None:
            return Demands(Terms(checks, contract), fields)
        model = fitted.confidence_for(selector)
        if model is None:
            return Demands(Terms(checks, contract, unjudged=OTHER_SCOPE), fields)
        ours = body.logprobs_wanted()
        if ours is not None:
            fields["logprobs"] = ours
        threshold = self.threshold(version.name, model, checks["low_confidence"].share)
        scope = scores.scope.score if scores.scope is not None and scores.version == version.name else None
        has_logprobs = ours is not None or body.asks_for_logprobs
        return Demands(Terms(checks, contract, model, threshold, scope, has_logprobs), fields, ours is not None)

    def threshold(self, version: str, model: ConfidenceModel, share: float) -> float | None:
        """A confidence model's threshold for a share of wrong answers; None if it can't certify that share."""
        cached = self._thresholds.get((version, share))
        if cached is None or cached[0] is not model:
            _make_room(self._thresholds, THRESHOLDS_MAX)
            cached = self._thresholds[(version, share)] = (model, model.threshold(share))
        return cached[1]

    def offered(self, body: RequestBody, called: frozenset[str]) -> Offered:
        """The tools that the caller offers. For those that were `called`, the arguments' schemas are read too."""
        tools: dict[str, Parameters | None] = {}
        raw = body.tools()
        try:
            offers = _TOOLS.decode(raw) if raw is not None else []
        except (msgspec.DecodeError, RecursionError):
            offers = []
        for tool in offers:
            function = tool.function
            if function is not None:
                tools[function.name] = read_parameters(bytes(function.parameters)) if function.name in called else None
            elif tool.custom is not None:
                tools[str(tool.custom.name)] = None
        wanted = body.read.tool_choice
        if wanted is None or isinstance(wanted, str):
            return Offered(tools, wanted != "none", wanted == "required")
        named = wanted.function.name if wanted.function is not None else None
        return Offered(tools, True, True, named)


def is_foreign(choice: Choice) -> bool:
    """True if a fallback answers a request out of the task's scope. Such an answer need not keep the contract."""
    return choice.reason in ("out_of_scope", "other_language") and choice.at_fallback


def _form(task: TaskPolicy, body: RequestBody, choice: Choice, version: VersionView) -> Mapping[str, Any]:
    """The fields that make an engine answer only in the contract's form, if the task wants that and the caller sets no
    other form.

    A fallback gets its general prompt's form. Without one, it gets the contract's form if its engines can keep it.
    """
    contract = version.contract
    if not task.constrained or contract is None or body.shapes_its_answer():
        return NOTHING
    traits = ENGINE_TRAITS[choice.pool.engine]
    if choice.version is None and (version.general_prompt.response_format or not traits.keeps_forms):
        return NOTHING
    for name in FORM_NAMES:
        if contract.get(name) is not None:
            return traits.answer_form(name, contract[name], body.wire_format.json_schema)
    return NOTHING


def _compiled(contract: Mapping[str, Any]) -> Contract | None:
    try:
        return compile_contract(contract)
    except ContractError as error:  # the version was pushed before a push compiled contracts
        log.warning("a contract can't be checked: %s", error)
        return None


def _make_room(cache: dict[Any, Any], most: int) -> None:
    """Remove the oldest entries until there is room for one more."""
    while len(cache) >= most:
        del cache[next(iter(cache))]
