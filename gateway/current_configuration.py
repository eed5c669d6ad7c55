"""The present configuration of this gateway, and the values computed from it, each in one place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gateway.configuration.settings import Settings
from gateway.limits.caller_limits import Bound, bound_of
from gateway.limits.fallback_caps import Cap
from gateway.state.snapshot import ConfiguredPolicy
from monitoring.cost import Price
from monitoring.evaluation.answer_forms import NORMAL, AnswerForm
from monitoring.feedback import WordSeals
from router.policy import AUTO, TaskPolicy

JUDGE_FORMS_MAX = 32
"""Most forms of judges. Each demonstration is read once for each form."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of each pool's engines, and the price with which savings are computed. None: no price is known."""

    by_pool: dict[str, Price | None]
    general: Price | None


class CurrentConfiguration:
    """The present configuration. Only `apply_settings` changes it, with the values that depend on it."""

    __slots__ = (
        *("_part_of", "config", "judge_forms", "loaded_at", "pool_limits", "prices", "settings", "turn"),
        *("whole", "words"),
    )

    def __init__(self, settings: Settings, part_of: Callable[[Settings], Settings], config: Path | None = None) -> None:
        """`config` is the settings' file, if a reload can read one. `part_of` returns this process's part of the
        settings. Raises SettingsError if that is not possible."""
        self.config = config
        self._part_of = part_of
        self.turn = asyncio.Lock()
        """Lock for reloads: one at a time."""
        self.apply_settings(settings)

    def apply_settings(self, settings: Settings) -> None:
        """Use these settings from now on. Raises SettingsError; then nothing has changed."""
        self.settings = self._part_of(settings)
        self.whole = settings
        """The settings as read, with the bounds for all processes together."""
        self.prices = prices_of(settings)
        most, isolation = settings.limits.pool_max_tokens_max, settings.cache_isolation
        self.pool_limits: Mapping[str, TaskPolicy] = {
            name: pool.limits(most, isolation) for name, pool in settings.pools.items()
        }
        self.judge_forms = judge_forms_of(settings)
        self.words = WordSeals(settings.texts.make_seals(), settings.list_class_tags())
        self.loaded_at = time.time()
        """Unix seconds."""


def configured_policy_of(settings: Settings) -> ConfiguredPolicy:
    """The part of the settings that goes into the policy."""
    tasks = {name: task.policy(name, settings.cache_isolation) for name, task in settings.tasks.items()}
    pools = frozenset(name for name, pool in settings.pools.items() if pool.callable)
    auto_pool = settings.general_pool if settings.general_pool in pools else None
    return ConfiguredPolicy(MappingProxyType(tasks), pools, settings.limits.attempts(), auto_pool)


def judge_forms_of(settings: Settings) -> tuple[AnswerForm, ...]:
    """The forms in which the tasks' judges compare answers, each once, at most JUDGE_FORMS_MAX. The first form is for
    a canary's answers."""
    forms = dict.fromkeys([NORMAL, *(task.monitor.judge.form() for task in settings.tasks.values())])
    return tuple(forms)[:JUDGE_FORMS_MAX]


def prices_of(settings: Settings) -> Prices:
    """The prices of pools."""
    by_pool = {name: pool.price.price() if pool.price else None for name, pool in settings.pools.items()}
    return Prices(by_pool, by_pool[settings.general_pool])


def bounds_of(settings: Settings) -> Mapping[str, Bound]:
    """Upper bounds of a request, by the value of `model`."""
    prices = prices_of(settings).by_pool
    adapted = [prices[name] for name, pool in settings.pools.items() if pool.base_folder is not None]
    pools = {name: bound_of(settings.limits.pool_max_tokens_max, [price]) for name, price in prices.items()}
    tasks = {
        name: bound_of(task.max_tokens_max, [*adapted, prices.get(task.fallback_pool or "")])
        for name, task in settings.tasks.items()
    }
    every = [*adapted, *(prices.get(task.fallback_pool or "") for task in settings.tasks.values())]
    most = max((task.max_tokens_max for task in settings.tasks.values()), default=0)
    auto = bound_of(max(most, settings.limits.pool_max_tokens_max), [*every, prices.get(settings.general_pool)])
    return MappingProxyType(pools | tasks | {AUTO: auto})


def caps_of(settings: Settings) -> Mapping[str, Cap]:
    """Caps of the requests and the money that tasks may send to their fallbacks."""
    tasks = settings.tasks.items()
    return {name: Cap(task.general_share_max, task.general_usd_per_day) for name, task in tasks}
