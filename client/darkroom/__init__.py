"""The client of Darkroom, which develops the latents of diffusion models into pictures.

    from darkroom import Client

    client = Client()                         # DARKROOM_URL, DARKROOM_API_KEY
    job = client.submit(latents, vae="sdxl")  # torch.Tensor, numpy array, path or bytes
    image = job.result(timeout=60)            # PIL.Image

`remote_decode` and `remote_encode` take diffusers' arguments, `RemoteVAE` the place of a pipeline's
VAE.

Errors form one tree under `DarkroomError`. Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkroom._async_client import AsyncClient
    from darkroom._batch_handles import AsyncBatchHandle, BatchHandle
    from darkroom._client import Client
    from darkroom._errors import (
        ConflictError,
        DarkroomError,
        GoneError,
        InvalidRequestError,
        JobCanceledError,
        JobEndedError,
        JobFailedError,
        LatentsError,
        NotAuthorizedError,
        NotFoundError,
        OverloadedError,
        RequestRefusedError,
        ResultCorruptError,
        ResultExpiredError,
        ResultTypeError,
        ServiceFaultError,
        ServiceUnreachableError,
        SettingsError,
        UnexpectedAnswerError,
        VaeDetailsError,
        WaitTimeoutError,
    )
    from darkroom._handles import AsyncJobHandle, JobHandle
    from darkroom._options import SubmitOptions
    from darkroom._remote import remote_decode, remote_encode
    from darkroom._remote_vae import RemoteVAE
    from darkroom._retry import RetryPolicy

__all__ = [
    "AsyncBatchHandle",
    "AsyncClient",
    "AsyncJobHandle",
    "BatchHandle",
    "Client",
    "ConflictError",
    "DarkroomError",
    "GoneError",
    "InvalidRequestError",
    "JobCanceledError",
    "JobEndedError",
    "JobFailedError",
    "JobHandle",
    "LatentsError",
    "NotAuthorizedError",
    "NotFoundError",
    "OverloadedError",
    "RemoteVAE",
    "RequestRefusedError",
    "ResultCorruptError",
    "ResultExpiredError",
    "ResultTypeError",
    "RetryPolicy",
    "ServiceFaultError",
    "ServiceUnreachableError",
    "SettingsError",
    "SubmitOptions",
    "UnexpectedAnswerError",
    "VaeDetailsError",
    "WaitTimeoutError",
    "remote_decode",
    "remote_encode",
]

_MODULES = {
    "AsyncBatchHandle": "darkroom._batch_handles",
    "BatchHandle": "darkroom._batch_handles",
    "AsyncClient": "darkroom._async_client",
    "AsyncJobHandle": "darkroom._handles",
    "Client": "darkroom._client",
    "JobHandle": "darkroom._handles",
    "RemoteVAE": "darkroom._remote_vae",
    "RetryPolicy": "darkroom._retry",
    "SubmitOptions": "darkroom._options",
    "remote_decode": "darkroom._remote",
    "remote_encode": "darkroom._remote",
}


if not TYPE_CHECKING:  # a type checker would take every misspelt name for an attribute

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'darkroom' has no attribute {name!r}")
        value = getattr(import_module(_MODULES.get(name, "darkroom._errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
