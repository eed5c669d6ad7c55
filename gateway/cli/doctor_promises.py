"""Findings of `apprentice doctor` on settings that will be refused at run time, or can never have an effect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel

from gateway.cli.doctor_checks import DoctorFinding, report_problem, report_warning
from gateway.configuration.settings import Settings, find_misspelt_variables
from gateway.configuration.tasks import TaskSettings
from gateway.features.texts.redactors import load_redaction
from monitoring.bucket_storage import BucketError, find_file_system

WRITTEN = frozenset({"head_file"})
"""Files that a gateway makes itself."""
WITHOUT_PACKAGE = frozenset({"hf", "oci"})
"""Schemes that adapters are pulled from without a package of their own."""


def check_promises(settings: Settings) -> Iterator[DoctorFinding]:
    """Check that nothing in the configuration is refused later."""
    for key, path in _list_files(settings, ""):
        if not os.access(path, os.R_OK) or path.is_dir():
            yield report_problem(key, f"{path} is not a file that can be read here", "Make it, or fix the setting.")
    for folder in settings.import_folders:
        if not os.access(folder, os.R_OK | os.X_OK):
            yield report_warning("import_folders", f"{folder} can't be read here", "Make it, or leave it out.")
    for variable, name in find_misspelt_variables():
        yield report_warning("environment", f"nobody reads {variable}", f"Call it {name}, or unset it.")
    yield from _check_training(settings)
    for scheme in sorted({each.partition("://")[0] for each in settings.pulls.allowed} - WITHOUT_PACKAGE):
        try:
            find_file_system(scheme)
        except BucketError as error:
            yield report_warning("pulls.allowed", f"{error}", "Until then each such pull is refused.")
    if settings.signing.required and not settings.signing.trusted:
        advice = "Set signing.trusted, or required to false."
        yield report_warning("signing.required", "nobody's signature is trusted: each adapter is refused", advice)
    if settings.tracing.endpoint is not None and find_spec("opentelemetry") is None:
        advice = "Install apprentice-gateway[tracing], or leave tracing.endpoint out."
        yield report_problem("tracing.endpoint", "its package is missing: no gateway starts", advice)
    oidc = settings.console.oidc
    if oidc is not None and not any(oidc.by_role.values()):
        advice = "Set console.oidc.admins, operators or reviewers."
        yield report_warning("console.oidc", "no value of role_claim gives a role: nobody gets in", advice)
    for name, task in settings.tasks.items():
        yield from _check_task(settings, name, task)


def _list_files(section: BaseModel, place: str) -> Iterator[tuple[str, Path]]:
    """The files that settings name, by their keys."""
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _list_files(value, f"{place}{name}.")
        elif isinstance(value, Path) and (name == "python" or name.endswith("_file")) and name not in WRITTEN:
            yield f"{place}{name}", value
        elif isinstance(value, dict):
            for each, held in value.items():
                if isinstance(held, BaseModel):
                    yield from _list_files(held, f"{place}{name}.{each}.")


def _check_training(settings: Settings) -> Iterator[DoctorFinding]:
    """Check that the configured runner, which `retraining: auto` needs too, can run."""
    autos = [name for name, task in settings.tasks.items() if task.monitor.retraining == "auto"]
    is_wanted = autos or {"runner", "python"} & settings.training.model_fields_set
    if is_wanted and (lack := settings.training.find_lack(settings.training.runner)) is not None:
        needing = f"retraining: auto of {', '.join(autos)}" if autos else "a training"
        yield report_warning("training", f"{needing} would be refused", lack)


def _check_task(settings: Settings, name: str, task: TaskSettings) -> Iterator[DoctorFinding]:
    monitor, key = task.monitor, f"tasks.{name}"
    draws = monitor.reviews.per_week or monitor.reviews.per_week_suspect
    if not any(pool.takes_adapters for pool in settings.pools.values()):
        advice = "Set base_folder of the pool that its versions are trained for."
        yield report_warning(key, "no pool takes adapters: it can have no version", advice)
    if monitor.feedback_metric is None and "correct" not in settings.feedback_metrics:
        advice = f"Set {key}.monitor.feedback_metric, or declare `correct`."
        yield report_warning(f"{key}.monitor", "no feedback is a label: no verdict rests on it", advice)
    if monitor.retraining == "auto" and "retrain" not in monitor.responses:
        advice = "Add retrain to responses, or set retraining to off."
        yield report_warning(f"{key}.monitor.retraining", "nothing asks for a training", advice)
    if monitor.retraining == "auto" and task.texts.keep == "none" and not draws:
        advice = f"Set {key}.texts.keep, or {key}.monitor.reviews.per_week."
        yield report_warning(f"{key}.monitor.retraining", "no text is kept to train on", advice)
    if monitor.reviews.several_share and not draws:
        advice = f"Set {key}.monitor.reviews.per_week."
        yield report_warning(f"{key}.monitor.reviews", "several_share of no reviews", advice)
    if task.texts.keep != "none":
        try:
            load_redaction(task.texts.redaction, settings.texts.phone_region)
        except Exception as error:  # whatever it does when it is loaded
            advice = "Fix its package: no gateway starts."
            yield report_problem(f"{key}.texts.redaction", f"it can't be loaded: {error!r:.200}", advice)
