"""The job records in Redis: every step of a job's life is one Lua script."""

from . import transitions
from .client import (
    AsyncRecordsClient,
    RecordsClient,
    RecordsError,
    RecordsFullError,
    RecordsUnavailableError,
)
from .model import (
    BATCH_COMPLETED,
    JOB_EVENTS,
    BatchMember,
    BatchRecord,
    BatchSpec,
    Content,
    JobRecord,
    JobSpec,
    Manifest,
    Rendering,
    State,
    StoredOutput,
)

__all__ = [
    "BATCH_COMPLETED",
    "JOB_EVENTS",
    "AsyncRecordsClient",
    "BatchMember",
    "BatchRecord",
    "BatchSpec",
    "Content",
    "JobRecord",
    "JobSpec",
    "Manifest",
    "RecordsClient",
    "RecordsError",
    "RecordsFullError",
    "RecordsUnavailableError",
    "Rendering",
    "State",
    "StoredOutput",
    "transitions",
]
