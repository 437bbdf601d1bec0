"""Server-Sent Events as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Event:
    """One event. `id` is None where it came without one; a comment is an event without a name."""

    name: str
    id: str | None
    document: dict[str, Any]

    @property
    def job(self) -> dict[str, Any]:
        """The job's document in it."""
        job: dict[str, Any] = self.document["data"]
        return job


def read_events(answer: httpx.Response) -> Iterator[Event]:
    """Read a stream to its end; comments and `retry` are passed over."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            document = json.loads(fields["data"])
            yield Event(fields.get("event", "message"), fields.get("id"), document)
        fields = {}


@contextmanager
def listening(client: httpx.Client, path: str, **arguments: Any) -> Iterator[Iterator[Event]]:
    """Open a stream of events."""
    with client.stream("GET", path, **arguments) as answer:
        if answer.status_code != 200:
            raise AssertionError(f"{answer.status_code} {answer.read().decode()}")
        yield read_events(answer)


def told(events: Iterator[Event]) -> list[tuple[str, str | None]]:
    """Read the rest of a stream: name and id of each event."""
    return [(event.name, event.id) for event in events]
