"""The report on ratings as a process: a job as a line of JSON in, the report as JSON out."""

from __future__ import annotations

import os
import sys

import msgspec
from threadpoolctl import threadpool_limits

from monitoring.helper_process import live_with_input
from monitoring.labels.messages import RatingsFault, RatingsJob
from monitoring.labels.ratings import RatingsError, collect_ratings, read_rater_file
from monitoring.labels.report import report_ratings


def main() -> None:
    """Make one report."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=RatingsJob)
    live_with_input()
    try:
        ratings = collect_ratings(job.ratings, job.gold) if job.text is None else read_rater_file(job.text)
        with threadpool_limits(1):
            output: object = report_ratings(ratings, job.agreement_min)
    except RatingsError as error:
        output = RatingsFault(fault=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(output))
    sys.stdout.buffer.flush()
    os._exit(0)  # whatever reads the input would keep it


if __name__ == "__main__":
    main()
