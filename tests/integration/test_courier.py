"""The courier on real parts: many events for one receiver, and a receiver that is slow."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from darkroom_infra.callbacks import parse_networks
from darkroom_infra.ledger import CANCELED, Ledger, ending
from darkroom_infra.records import AsyncRecordsClient, JobSpec, RecordsClient, transitions
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Status
from darkroom_worker.webhooks import Schedule, Sender, courier
from darkroom_worker.webhooks.courier import Courier
from tests.conftest import Deployment

AT_ONCE = 2
EVENTS = 5 * AT_ONCE
PATIENCE = 30.0


def post_event(records: RecordsClient, url: str) -> None:
    """Have a job canceled whose owner wants to hear of it."""
    spec = JobSpec(
        id=new_id(),
        owner="anna",
        created_at=datetime.now(UTC),
        options=JobOptions(vae="demo", callback_url=url, callback_events="job.canceled"),
        format=Format.PNG,
        latents=Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024),
        ttl=3600,
    )
    records.run(transitions.accept(spec))
    manifest = ending(spec.id, Status.CANCELED, timedelta(hours=1), CANCELED)
    assert records.run(transitions.finish(manifest)) == "finished"


class Crowded:
    """A receiver that answers nobody before as many have come as may come at once."""

    def __init__(self) -> None:
        self.came = 0
        self.here = 0
        self.most = 0
        self.all_in = asyncio.Event()
        self._full = asyncio.Event()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a request, wait for others, answer."""
        self.came += 1
        self.here += 1
        self.most = max(self.most, self.here)
        if self.here == AT_ONCE:
            self._full.set()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        await self._full.wait()
        self.here -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        if self.came == EVENTS:
            self.all_in.set()


def test_many_events_for_one_receiver_take_turns(
    deployment: Deployment,
    records: RecordsClient,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only so many are sent to one host at once; the others follow, and do not lose their turn.

    What is put off until its lease ends would not come within this test.
    """
    monkeypatch.setattr(courier, "LEASE", timedelta(hours=1))
    monkeypatch.setattr(courier, "MOST_TO_ONE_HOST", AT_ONCE)
    asyncio.run(_all_come(deployment, records, ledger))


async def _all_come(deployment: Deployment, records: RecordsClient, ledger: Ledger) -> None:
    receiver, stop = Crowded(), asyncio.Event()
    server = await asyncio.start_server(receiver.receive, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    for _ in range(EVENTS):
        post_event(records, url)
    reading = AsyncRecordsClient(deployment.environment["DARKROOM_REDIS_URL"])
    sender = Sender(parse_networks(["127.0.0.0/8"]))
    sending = asyncio.create_task(
        Courier(reading, ledger, sender, Schedule(), lambda _: ()).run(stop)
    )
    async with asyncio.timeout(PATIENCE):
        await receiver.all_in.wait()
    stop.set()
    await sending
    assert (receiver.came, receiver.most) == (EVENTS, AT_ONCE)
    await reading.close()
    server.close()
