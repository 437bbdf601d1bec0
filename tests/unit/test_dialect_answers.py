"""Parts of the diffusers dialect's answers that no caller can bring about at will."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from darkroom_api.dialect_answers import JOB_HEADER, naming, widen
from darkroom_api.errors import ApiError, GoneError, UnavailableError
from darkroom_infra.records import RecordsUnavailableError
from darkroom_infra.store import StoreUnavailableError


@pytest.mark.parametrize("error", [RecordsUnavailableError("away"), StoreUnavailableError("away")])
def test_an_outage_names_the_job(error: Exception) -> None:
    """Where Redis or S3 is lost while a call waits, the caller learns where its job is."""
    with pytest.raises(UnavailableError) as raised, naming("the-job"):
        raise error
    assert raised.value.headers[JOB_HEADER] == "the-job"
    assert int(raised.value.headers["Retry-After"]) >= 1
    assert "/v1/jobs/the-job" in raised.value.detail


def test_headers_of_errors_stay() -> None:
    """The job's header comes beside what an error says already, and to no other error."""
    with pytest.raises(ApiError) as raised, naming("the-job"):
        raise UnavailableError("later")
    assert set(raised.value.headers) == {JOB_HEADER, "Retry-After"}
    assert JOB_HEADER not in UnavailableError("later").headers
    assert JOB_HEADER not in GoneError("gone").headers


def test_widening_is_exact() -> None:
    """Every bfloat16 there is, NaN and infinity included, becomes the float32 of its value."""
    everything = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    expected = everything.float().numpy()
    given = everything.view(torch.uint8).numpy().data
    widened = np.frombuffer(widen(given), "float32")
    assert np.array_equal(widened.view("uint32"), expected.view("uint32"))
