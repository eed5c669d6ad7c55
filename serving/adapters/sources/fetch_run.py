"""The process that fetches an adapter from elsewhere, beside the gateway."""

from __future__ import annotations

from monitoring.helper_process import run_job, tell_step
from serving.adapters.sources.fetch_job import FetchJob
from serving.adapters.sources.fetching import fetch

if __name__ == "__main__":
    run_job(FetchJob, lambda job: fetch(job, tell_step))
