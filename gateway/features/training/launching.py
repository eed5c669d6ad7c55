"""Launching of trainings that run elsewhere: as a Kubernetes Job, as a Ray job, or by a message to a webhook.

Each job's name follows from its training, so that a second launch finds the first job.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import Any, assert_never

import httpx
import msgspec
import yaml

from gateway.background.webhook_signature import sign_message
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.trainer_keys import key_of
from gateway.features.training.training_end import TrainingFault
from serving.adapters.plain_yaml import read_yaml

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 30.0
URL_VARIABLE, TOKEN_VARIABLE = "TRAINING_URL", "TRAINING_TOKEN"
BOOTSTRAP = (
    "import os, runpy, sys, urllib.request as u; "
    "r = u.Request(os.environ['TRAINING_URL'] + '/files/remote_trainer.py', "
    "headers={'Authorization': 'Bearer ' + os.environ['TRAINING_TOKEN']}); "
    "open('remote_trainer.py', 'wb').write(u.urlopen(r).read()); "
    "runpy.run_path('remote_trainer.py', run_name='__main__')"
)
"""The Python that fetches the trainer from the gateway, and runs it."""


def url_of(trainings: Trainings, training: Training) -> str:
    """The URL at which a trainer finds its training."""
    return f"{trainings.services.settings.training.reached_at}/v1/trainings/{training.id}"


def name_of(training: Training) -> str:
    """The name of a training's job elsewhere. A training that is begun again gets another name."""
    return f"apprentice-training-{training.id}-{int(training.begun_at * 1000)}"


async def launch(trainings: Trainings, training: Training) -> None:
    """Launch a training elsewhere, unless it runs already. Raises TrainingFault."""
    try:
        match training.runner:
            case "kubernetes":
                await _make_job(trainings, training)
            case "ray":
                await _submit_to_ray(trainings, training)
            case "webhook":
                await _tell_webhook(trainings, training)
            case "local":
                pass  # it runs here (training_run.py)
            case _:
                assert_never(training.runner)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError) as error:
        raise TrainingFault(f"The runner {training.runner} can't be reached: {error}. Run the command again.") from None


async def find_end(trainings: Trainings, training: Training) -> str | None:
    """The reason why a training's job elsewhere has ended, if it is known; None while the job may still run."""
    try:
        match training.runner:
            case "kubernetes":
                return await _job_end(trainings, training)
            case "ray":
                return await _ray_end(trainings, training)
            case "webhook" | "local":
                return None
            case _:
                assert_never(training.runner)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError, ValueError, TypeError, AttributeError) as error:
        log.warning("the end of the training %s can't be reported: %s", training.id, error)
        return None  # the next look tries again; a proxy may have answered with its own page


async def _tell_webhook(trainings: Trainings, training: Training) -> None:
    settings = trainings.services.settings.training
    message = {
        "id": name_of(training),
        "training": training.id,
        "task": training.task,
        "data": training.data,
        "begin": training.begin,
        "parameters": training.parameters,
        "url": url_of(trainings, training),
        "token": key_of(trainings, training),
    }
    body = msgspec.json.encode(message)
    headers = {"Content-Type": "application/json"}
    if settings.webhook_key is not None:
        headers |= sign_message(settings.webhook_key.get_secret_value(), name_of(training), body, time.time())
    answer = await trainings.services.control.http.post(
        settings.webhook_url or "", content=body, headers=headers, timeout=TIMEOUT_SECONDS
    )
    _see_that_it_was_taken(training, answer)


async def _submit_to_ray(trainings: Trainings, training: Training) -> None:
    variables = {URL_VARIABLE: url_of(trainings, training), TOKEN_VARIABLE: key_of(trainings, training)}
    name = name_of(training)
    job = {
        "submission_id": name,
        "entrypoint": f'python -c "{BOOTSTRAP}" {name}',
        "runtime_env": {"env_vars": variables},
        "metadata": {"training": training.id},
    }
    url = f"{trainings.services.settings.training.ray_url}/api/jobs/"
    answer = await trainings.services.control.http.post(url, json=job, timeout=TIMEOUT_SECONDS)
    if not (answer.is_error and "already" in answer.text):
        _see_that_it_was_taken(training, answer)


async def _ray_end(trainings: Trainings, training: Training) -> str | None:
    url = f"{trainings.services.settings.training.ray_url}/api/jobs/{name_of(training)}"
    answer = await trainings.services.control.http.get(url, timeout=TIMEOUT_SECONDS)
    job: dict[str, Any] = answer.json() if answer.is_success else {}
    is_over = job.get("status") in ("FAILED", "STOPPED", "SUCCEEDED")
    return f"Ray's job {job['status'].lower()}: {job.get('message')}" if is_over else None


async def _make_job(trainings: Trainings, training: Training) -> None:
    settings = trainings.services.settings.training.kubernetes
    template = await asyncio.to_thread(_read_template, settings.template_file)
    variables = {URL_VARIABLE: url_of(trainings, training), TOKEN_VARIABLE: key_of(trainings, training)}
    job = fill_template(template, name_of(training), training, variables)
    answer = await _ask_kubernetes(trainings, "POST", "", job)
    if answer.status_code != httpx.codes.CONFLICT:  # else the job exists already
        _see_that_it_was_taken(training, answer)


def fill_template(template: dict[str, Any], name: str, training: Training, variables: dict[str, str]) -> dict[str, Any]:
    """The Job of a training, made from its template: its name, labels, and what its containers must know.

    Raises TrainingFault for a template that is not a Job.
    """
    try:
        metadata = {**template.get("metadata", {}), "name": name}
        labels = {**metadata.get("labels", {}), "apprentice/training": training.id, "apprentice/task": training.task}
        spec = template["spec"]
        pod = spec["template"]["spec"]
        values = [{"name": key, "value": value} for key, value in variables.items()]
        containers = [{**each, "env": [*each.get("env", ()), *values]} for each in pod["containers"]]
        filled = {**spec["template"], "spec": {**pod, "containers": containers}}
        return {**template, "metadata": {**metadata, "labels": labels}, "spec": {**spec, "template": filled}}
    except (KeyError, TypeError, AttributeError):
        raise TrainingFault("training.kubernetes.template_file is not a Job: see k8s/training/job.yaml.") from None


async def _job_end(trainings: Trainings, training: Training) -> str | None:
    answer = await _ask_kubernetes(trainings, "GET", f"/{name_of(training)}")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return "Its Job in Kubernetes is gone."
    status = answer.json().get("status", {}) if answer.is_success else {}
    conditions = {each.get("type"): each for each in status.get("conditions", ()) if each.get("status") == "True"}
    if (failed := conditions.get("Failed")) is not None:
        return f"Its Job failed ({failed.get('reason')}: {failed.get('message')}): see the logs of its pod."
    is_complete = "Complete" in conditions  # others say that it waits for a place, or that its end is near
    return "Its Job is complete, and sent no adapter: see the logs of its pod." if is_complete else None


async def _ask_kubernetes(trainings: Trainings, method: str, path: str, body: Any = None) -> httpx.Response:
    account = trainings.services.settings.training.kubernetes.account()
    namespace = await asyncio.to_thread(account.read, "namespace")
    url = f"{account.api_url}/apis/batch/v1/namespaces/{namespace}/jobs{path}"
    async with await asyncio.to_thread(account.open_client) as http:
        return await http.request(method, url, json=body, timeout=TIMEOUT_SECONDS)


def _read_template(path: Path | None) -> dict[str, Any]:
    """Raises TrainingFault, OSError."""
    try:
        template = read_yaml((path or Path()).read_bytes())
    except yaml.YAMLError as error:
        raise TrainingFault(f"{path} is not YAML: {error}") from None
    return template if isinstance(template, dict) else {}


def _see_that_it_was_taken(training: Training, answer: httpx.Response) -> None:
    if not answer.is_success:
        text = f"The runner {training.runner} refused the training ({answer.status_code}): {answer.text[:500]}"
        raise TrainingFault(text)
