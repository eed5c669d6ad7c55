"""The report on ratings as a process: a job as a line of JSON in, the report as JSON out."""

from __future__ import annotations

from threadpoolctl import threadpool_limits

from monitoring.helper_process import run_job
from monitoring.labels.messages import RatingsFault, RatingsJob
from monitoring.labels.ratings import RatingsError, collect_ratings, read_rater_file
from monitoring.labels.report import report_ratings


def report(job: RatingsJob) -> object:
    """The report on the ratings of a job, or what is wrong with its file."""
    try:
        ratings = collect_ratings(job.ratings, job.gold) if job.text is None else read_rater_file(job.text)
        with threadpool_limits(1):
            return report_ratings(ratings, job.agreement_min)
    except RatingsError as error:
        return RatingsFault(fault=str(error))


if __name__ == "__main__":
    run_job(RatingsJob, report)
