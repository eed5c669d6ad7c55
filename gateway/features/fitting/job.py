"""Background job of one gateway that fits models from waiting training prompts, each in its own process.

The sample stays in Redis until its model is stored. If this gateway stops, the next one that holds the lease starts the
fitting again. A fitting that cannot succeed ends with an error message, and its sample is deleted.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.background.job_process import make_command, run_process
from gateway.errors import Problem
from gateway.features.fitting.state import WAIT_SECONDS_MAX, Fitting, WaitingSample
from gateway.state.fitted_store import FittedError, FittingStatus, Kind
from monitoring.helper_process import ProgressStep
from router.fitting_job import FittingJob, FittingResult

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 0.5
FAILED_MAX = 3
"""Tries of a fitting that fails by an unexpected error."""
BEGUN_MAX = 5
"""Tries of a fitting whose gateway dies meanwhile: the fitting may be the reason, if memory runs out."""
KIND: Kind = "scope"
COMMAND = make_command("router.fitting.run")


class FittingFailure(Exception):
    """The fitting failed; the message gives the remedy."""


async def keep_fitting(fitting: Fitting) -> None:
    """Fit the waiting samples, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = fitting.services.lease_job("fitting")
    await lease.repeat(FittingWork(fitting).step, LOOK_INTERVAL_SECONDS, waits=True)


class FittingWork:
    """Fitter of the waiting samples, one by one."""

    def __init__(self, fitting: Fitting) -> None:
        self._fitting = fitting
        self._looked_at = -1
        """The generation of the state at which retired versions were last looked for."""

    async def step(self) -> None:
        """Fit all samples that wait now, and delete the models of retired versions. Raises RedisError."""
        for version in await self._fitting.samples.expired():
            text = f"Its prompts waited for {WAIT_SECONDS_MAX // 86_400} days and were deleted: send them again."
            await self._fitting.services.control.fitted.say(version, KIND, FittingStatus(state="failed", error=text))
        while (sample := await self._fitting.samples.first()) is not None:
            await self._fit(sample)
        await self._forget_retired()

    async def _fit(self, sample: WaitingSample) -> None:
        fitting, version, began = self._fitting, sample.version, time.monotonic()
        await self._say(sample, FittingStatus(state="fitting", stage="starting"))
        try:
            if await fitting.samples.begun(version) > BEGUN_MAX:
                raise FittingFailure(
                    f"Its gateway ended in the middle {BEGUN_MAX} times: give fewer prompts, or more memory."
                )
            fitted_result = await self._result(sample)
            seconds = time.monotonic() - began
            summary = sample.counts | {
                "auroc": fitted_result.auroc,
                "thresholds": fitted_result.thresholds,
                "embedding": fitted_result.embedding,
                "seconds": round(seconds, 1),
            }
            entry = await fitting.services.control.fitted.put(version, KIND, fitted_result.model, sample.by, summary)
            after: dict[str, Any] = {"digest": entry.digest, "bytes": entry.bytes, **summary}
            outcome = "ready"
        except (FittingFailure, FittedError) as failure:
            after, outcome = await self._failed(sample, str(failure)), "failed"
        except RedisError:
            raise
        except Exception as fault:
            log.exception("a fault while the %s model of %s was fitted", KIND, version)
            if await fitting.samples.failed(version) < FAILED_MAX:
                await self._say(
                    sample, FittingStatus(state="waiting", stage=f"again, after a fault ({type(fault).__name__})")
                )
                return
            text = f"A fault of the gateway's, {FAILED_MAX} times ({type(fault).__name__}): see its log."
            after, outcome = await self._failed(sample, text), "failed"
        await fitting.services.control.audit.append(sample.by, f"fitting.{outcome}", version, before=None, after=after)
        await fitting.samples.drop(version, sample.digest)
        fitting.services.meters.fitting.add(1, outcome)
        fitting.services.meters.fitting_seconds.observe(time.monotonic() - began)

    async def _failed(self, sample: WaitingSample, text: str) -> dict[str, Any]:
        """Publish that the fitting failed, with the reason."""
        await self._say(sample, FittingStatus(state="failed", error=text))
        log.error("the %s model of %s was not fitted: %s", KIND, sample.version, text)
        return {"error": text, **sample.counts}

    async def _result(self, sample: WaitingSample) -> FittingResult:
        """The result of a process that fits the sample. Raises FittingFailure."""
        settings = self._fitting.services.settings.fitting
        minilm = "" if settings.minilm_file is None else str(settings.minilm_file.absolute())
        job = FittingJob(len(sample.packed), minilm=minilm)

        async def note(step: ProgressStep) -> None:
            await self._say(sample, FittingStatus(state="fitting", progress=step.share, stage=step.stage))

        advice = "give fewer prompts, or more time (fitting.fitting_seconds_max)"
        longest, data = settings.fitting_seconds_max, sample.packed
        try:
            result = await run_process(COMMAND, job, FittingResult, longest, data=data, advice=advice, note=note)
        except Problem as problem:
            raise FittingFailure(problem.message) from None
        if result.error:
            raise FittingFailure(result.error)
        return result

    async def _say(self, sample: WaitingSample, status: FittingStatus) -> None:
        await self._fitting.services.control.fitted.say(
            sample.version, KIND, msgspec.structs.replace(status, by=sample.by)
        )

    async def _forget_retired(self) -> None:
        """Delete the models of retired versions."""
        snapshot = self._fitting.services.snapshot.current
        if snapshot.generation == self._looked_at:
            return
        retired = {name for name, version in snapshot.versions.items() if version.state == "retired"}
        for name in retired and retired & await self._fitting.services.control.fitted.versions():
            await self._fitting.services.control.fitted.delete(name)
        self._looked_at = snapshot.generation
