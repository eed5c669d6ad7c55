"""Access to buckets by fsspec: S3 (s3fs) and Google Storage (gcsfs), each an extra of the installation, and all others
whose package is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from monitoring.helper_process import JobError

PART = r"[A-Za-z0-9_][A-Za-z0-9._=+-]*"
BUCKET_ADDRESS = re.compile(rf"(s3|gs)://{PART}(/{PART})*")
CREDENTIALS: Mapping[str, str] = {
    "s3": "the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role) or ~/.aws/credentials",
    "gs": "the environment (GOOGLE_APPLICATION_CREDENTIALS)",
}


class Bucket(msgspec.Struct, frozen=True):
    """A folder of a bucket or another file system: `s3://BUCKET/FOLDER`. Its credentials are in the environment."""

    address: str
    s3_endpoint_url: str | None = None

    @property
    def scheme(self) -> str:
        """`s3`, `gs`, or that of another file system."""
        return self.address.partition("://")[0]


class BucketError(JobError):
    """A bucket can't be used. `is_lasting`: another try fails too, until somebody fixes the named fault."""

    def __init__(self, text: str, is_lasting: bool) -> None:
        super().__init__(text)
        self.is_lasting = is_lasting


def open_bucket(bucket: Bucket, **options: Any) -> Any:
    """The fsspec file system of a bucket. `options` apply to S3 and Google Storage alone. Raises BucketError."""
    if bucket.scheme == "s3":
        options |= {"endpoint_url": bucket.s3_endpoint_url}
    find_file_system(bucket.scheme)
    import fsspec  # noqa: PLC0415 - a part of what the extra installs

    with translate_errors(bucket, "list"):
        return fsspec.url_to_fs(bucket.address, **(options if bucket.scheme in CREDENTIALS else {}))[0]


def find_file_system(scheme: str) -> Any:
    """The fsspec class for addresses of this scheme. Raises BucketError if its package is missing."""
    try:
        import fsspec  # noqa: PLC0415 - as above

        return fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:  # fsspec says which package is missing, or that it knows no such scheme
        text = str(error).rstrip(".")
        if scheme in CREDENTIALS:
            text = f"install the gateway with its extra: pip install 'apprentice-gateway[{scheme}]'"
        raise BucketError(f"{scheme}:// can't be read here: {text}.", True) from None


@contextmanager
def translate_errors(bucket: Bucket, needed: str) -> Iterator[None]:
    """Turn errors of fsspec and its libraries into BucketError. `needed` is the action that must be allowed."""
    address, place = bucket.address, CREDENTIALS.get(bucket.scheme, "the environment, as its package reads it")
    advice = f"give credentials that may {needed} it, in {place}."
    try:
        yield
    except (JobError, ImportError):
        raise
    except FileNotFoundError:
        raise BucketError(f"There is nothing at {address}: check bucket and folder.", True) from None
    except PermissionError:
        raise BucketError(f"{address} refuses access (403): {advice}", True) from None
    except (OSError, TimeoutError) as error:
        raise BucketError(f"{address} broke off ({type(error).__name__})", False) from None
    except Exception as error:  # of the client's own classes
        name = type(error).__name__
        if "Credential" in name or "Auth" in name:
            raise BucketError(f"There are no credentials for {address} ({name}): {advice}", True) from None
        raise BucketError(f"{address} can't be read ({name})", False) from None
