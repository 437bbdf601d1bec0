"""Everything that can go wrong, as one tree.

::

    DarkroomError
    ├── SettingsError                 the address or the key cannot be used
    ├── LatentsError                  what was given cannot be sent as latents or as a picture
    ├── VaeDetailsError               what a pipeline asks of a VAE is not known
    ├── ServiceUnreachableError       no connection, or no answer in time
    ├── UnexpectedAnswerError         an answer that is not Darkroom's
    ├── RequestRefusedError           a problem document: status, title, detail, errors
    │   ├── InvalidRequestError       400, 405, 411, 413, 415, 422, or found wrong before sending
    │   ├── NotAuthorizedError        401, 403
    │   ├── NotFoundError             404
    │   ├── ConflictError             409
    │   ├── GoneError                 410
    │   ├── OverloadedError           429, 503: come back later
    │   └── ServiceFaultError         other 5xx
    ├── JobEndedError                 the job ended without a result
    │   ├── JobFailedError
    │   ├── JobCanceledError
    │   └── ResultExpiredError        it had a result, which is gone
    ├── WaitTimeoutError              the job is not finished yet; also a TimeoutError
    ├── ResultCorruptError            the bytes that came are not the ones that were stored
    └── ResultTypeError               the result cannot be given as what was asked for

Errors of the HTTP library are translated where the request is sent; none of them gets out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkroom_wire.jobs import Job
    from darkroom_wire.problems import FieldError


class DarkroomError(Exception):
    """The root of the tree.

    Attributes:
        submitted: Ids of the jobs that `submit_many` had submitted before this happened.
    """

    submitted: tuple[str, ...] = ()


class SettingsError(DarkroomError):
    """The service's address or the key cannot be used. The text names the setting."""


class LatentsError(DarkroomError, ValueError):
    """What was given cannot be sent as latents or as a picture. The text names dtype or file."""


class VaeDetailsError(DarkroomError):
    """What a pipeline asks of a VAE is not known: its configuration, or statistics of its latents.

    The text says how it becomes known.
    """


class ServiceUnreachableError(DarkroomError):
    """No connection to the service, or no answer in time."""


class UnexpectedAnswerError(DarkroomError):
    """The answer is not one that Darkroom gives: is the address right?"""


class RequestRefusedError(DarkroomError):
    """The service refused a request and said why.

    Attributes:
        status: The HTTP status.
        title: What kind of problem it is.
        detail: What is wrong in this case.
        errors: The fields at fault.
        retry_after: Seconds after which the service wants to be asked again.
    """

    def __init__(
        self,
        *,
        status: int,
        title: str,
        detail: str,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after
        told = (f"{error.field}: {error.message}" for error in errors)
        fields = "; ".join(text for text in told if text not in detail)
        super().__init__(f"{status} {title}: {detail}" + (f" ({fields})" if fields else ""))


class InvalidRequestError(RequestRefusedError):
    """The request cannot be served as it is: malformed, too large, or impossible."""


class NotAuthorizedError(RequestRefusedError):
    """The key is missing, unknown, or not allowed to do this."""


class NotFoundError(RequestRefusedError):
    """There is no such job or VAE, or the job belongs to another key."""


class ConflictError(RequestRefusedError):
    """The job's state does not allow this."""


class GoneError(RequestRefusedError):
    """What was asked for was deleted or has expired."""


class OverloadedError(RequestRefusedError):
    """The service takes no more work at present. `retry_after` says when it may."""


class ServiceFaultError(RequestRefusedError):
    """The service, or something before it, is broken."""


class JobEndedError(DarkroomError):
    """A job ended without a result that could be fetched.

    Attributes:
        job: The job's document.
    """

    def __init__(self, job: Job, what: str) -> None:
        self.job = job
        reason = f": {job.error.detail}" if job.error else ""
        super().__init__(f"job {job.id} {what}{reason}")


class JobFailedError(JobEndedError):
    """The job failed. `job.error` says why."""


class JobCanceledError(JobEndedError):
    """The job was canceled."""


class ResultExpiredError(JobEndedError):
    """The job succeeded, but its results are no longer kept."""


class WaitTimeoutError(DarkroomError, TimeoutError):
    """The time to wait is over and the job is not finished. It goes on; wait again."""


class ResultCorruptError(DarkroomError):
    """The bytes that came differ from those that were stored. Fetch again."""


class ResultTypeError(DarkroomError, TypeError):
    """The result cannot be given as what was asked for. The text says what can be had."""
