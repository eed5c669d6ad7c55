"""Admin endpoint for training prompts, from which a version's scope model is fitted.

It checks the prompts, and stores them in Redis. The gateway with the lease fits them (features/fitting/job.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from gateway.callers import Caller
from gateway.endpoint_parts import Admin, find_version
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.fitting.prompts import PromptsError, Sample, is_barely_useful, read_sample
from gateway.features.fitting.state import Fitting, WaitingSample
from gateway.openapi_parts import BYTES, JSON_ERRORS, as_form, with_body, with_errors
from gateway.server.adapter_uploads import SAMPLES
from gateway.state.fitted_store import FittingStatus
from router.policy import AUTO_SELECTOR
from serving.adapters.adapter_folder import BACKGROUND_FILE, PROMPTS_FILE
from serving.adapters.versions_and_aliases import GIVEN_UP, Version

router = APIRouter(prefix="/admin/v1", tags=["admins"])


@router.put(
    "/adapters/{name}/prompts",
    status_code=202,
    responses=with_errors(
        "not_found", "state_conflict", *JSON_ERRORS[1:], "unsupported_media_type", "prompts_rejected"
    ),
    openapi_extra=with_body(as_form(dict.fromkeys(SAMPLES, BYTES), [PROMPTS_FILE])),
)
async def give_prompts(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Fit the version's scope model from a sample of its training prompts. GET /adapters/{name} shows the progress."""
    fitting = feature_of(request, Fitting)
    async with fitting.services.control.adapters.uploads.receive(
        request, (PROMPTS_FILE,), (BACKGROUND_FILE,)
    ) as upload:
        version = await find_version(fitting.services, name)
        if version.state in GIVEN_UP:
            raise Problem("state_conflict", f"{name} is {version.state}: nothing is fitted for it any more.")
        sample = await sample_of(fitting, version.task, upload.prompts, upload.background)
        assert sample is not None, "the form has the file"
        answer = await have_fitted(fitting, admin, version, sample)
    return {"version": name, **answer}


async def sample_of(fitting: Fitting, task: str, prompts: Path | None, background: Path | None) -> Sample | None:
    """The sample in these files, read with the task's selector; None if there is no file.

    Raises Problem (422) if nothing can be learned from it, or a line is faulty.
    """
    if prompts is None:
        if background is not None:
            raise Problem("missing_field", f"{BACKGROUND_FILE} is of use beside {PROMPTS_FILE} alone.", PROMPTS_FILE)
        return None
    try:
        return await read_sample(prompts, background, selector_of(fitting, task) or AUTO_SELECTOR)
    except PromptsError as error:
        raise Problem("prompts_rejected", str(error), "prompts") from error
    except OSError as error:
        raise Problem("prompts_rejected", f"The prompts can't be read: {error.strerror}.", "prompts") from error


async def have_fitted(fitting: Fitting, admin: Caller, version: Version, sample: Sample) -> dict[str, Any]:
    """Queue the fitting of a version's scope from the sample, unless this is done or queued already."""
    name = version.name
    entry = (await fitting.services.control.fitted.of(name)).get("scope")
    state = (await fitting.services.control.fitted.states(name)).get("scope")
    is_fitted = entry is not None and entry.summary.get("sample") == sample.digest
    failed = state is not None and state.state == "failed"
    if (not is_fitted or failed) and await fitting.samples.digest_of(name) != sample.digest:
        step = fitting.services.begin_step(admin.public)
        step.note("adapter.prompts", name, None, sample.counts)
        waiting = WaitingSample(
            version=name, digest=sample.digest, packed=sample.packed, by=admin.public, counts=sample.counts
        )
        await fitting.samples.put(waiting, step)
        await fitting.services.control.fitted.say(
            name, "scope", FittingStatus(state="waiting", stage="waiting", by=admin.public)
        )
    shown = await fitting.services.control.fitted.shown(name, selector_of(fitting, version.task))
    return {"prompts": sample.counts, "fitted": shown}


def selector_of(fitting: Fitting, task: str) -> str | None:
    """The task's selector; None if the configuration lacks the task."""
    settings = fitting.services.settings.tasks.get(task)
    return settings.selector if settings is not None else None


def sentence_of(kind: str, shown: Mapping[str, Any]) -> str:
    """One fitted model, or its progress, in words."""
    model = shown["model"]
    if shown["state"] == "failed":
        serves = "the one before still serves" if model else "it is judged without"
        return f"Its {kind} model was not fitted, and {serves}: {shown['error'].rstrip('.')}."
    if shown["state"] != "ready":
        return f"Its {kind} model is {shown['state']}, {100 * shown['progress']:.0f} % ({shown['stage']})."
    summary = (model or {}).get("summary") or {}
    rows = f" on {summary['used']} training prompts" if "used" in summary else ""
    auroc = summary.get("auroc")
    how = "barely separates" if is_barely_useful(auroc) else "separates"
    tells = "" if auroc is None else f"; it {how} them from other traffic, with an AUROC of {auroc:.3f}"
    idle = f" It is not used: {shown['unused']}" if shown["unused"] else ""
    return f"Its {kind} model was fitted{rows}{tells}.{idle}"
