"""The job records in Redis: every step of a job's life is one Lua script."""

from . import transitions
from .client import AsyncRecordsClient, RecordsClient, RecordsError, RecordsUnavailableError
from .model import JobRecord, JobSpec, Manifest, State, StoredOutput

__all__ = [
    "AsyncRecordsClient",
    "JobRecord",
    "JobSpec",
    "Manifest",
    "RecordsClient",
    "RecordsError",
    "RecordsUnavailableError",
    "State",
    "StoredOutput",
    "transitions",
]
