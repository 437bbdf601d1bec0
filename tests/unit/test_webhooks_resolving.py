"""Looking up the names of receivers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from darkroom_infra.callbacks import parse_callback_url, parse_networks
from darkroom_worker.webhooks.resolving import (
    LOOKUPS,
    ForbiddenAddressError,
    ResolveError,
    SystemResolver,
    reachable_addresses,
)
from tests.hostile_urls import PUBLIC_V4
from tests.receivers import FakeResolver


def test_the_system_is_asked() -> None:
    """The default resolver is the system's: it knows this machine by name."""
    assert set(asyncio.run(SystemResolver().resolve("localhost"))) & {"127.0.0.1", "::1"}


def test_a_name_that_does_not_exist() -> None:
    """A name without an address is a fault that may pass, not a crash."""

    def missing(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(ResolveError, match=r"gone\.example cannot be resolved: Name or service"):
        asyncio.run(SystemResolver(getaddrinfo=missing).resolve("gone.example"))


def test_many_ask_for_one_name() -> None:
    """However many webhooks go to one name at once, it is looked up once; later, it is again."""
    asked = []

    def look_up(host: str) -> Sequence[str]:
        asked.append(host)
        return (PUBLIC_V4,)

    async def scenario() -> None:
        resolver = SystemResolver(getaddrinfo=look_up)
        answers = await asyncio.gather(*(resolver.resolve("a.example") for _ in range(500)))
        assert answers == [(PUBLIC_V4,)] * 500
        assert len(asked) == 1
        await resolver.resolve("a.example")
        assert len(asked) == 2

    asyncio.run(scenario())


def test_a_dead_name_server_delays_nobody() -> None:
    """Names whose servers never answer hold threads of their own, and are given up in time."""
    release = threading.Event()

    def look_up(host: str) -> Sequence[str]:
        if host.startswith("dead"):
            release.wait()
        return (PUBLIC_V4,)

    async def scenario() -> None:
        resolver = SystemResolver(seconds=120, getaddrinfo=look_up)
        dead = [asyncio.create_task(resolver.resolve(f"dead{n}")) for n in range(LOOKUPS - 1)]
        for n in range(20):
            assert await resolver.resolve(f"alive{n}.example") == (PUBLIC_V4,)
        assert not any(task.done() for task in dead)
        hasty = SystemResolver(seconds=0.05, getaddrinfo=look_up)
        results = await asyncio.gather(
            *(hasty.resolve(f"dead{n}") for n in range(LOOKUPS)), return_exceptions=True
        )
        assert {str(result) for result in results} == {
            f"no answer about dead{n} within 0.05 s" for n in range(LOOKUPS)
        }
        assert await SystemResolver(seconds=120, getaddrinfo=look_up).resolve("alive") == (
            PUBLIC_V4,
        )
        release.set()
        await asyncio.gather(*dead)

    try:
        asyncio.run(scenario())
    finally:
        release.set()


def test_one_that_stops_waiting_does_not_end_the_lookup_of_others() -> None:
    """A sender whose time is over leaves the shared lookup to those who still wait for it."""
    release = threading.Event()

    def look_up(host: str) -> Sequence[str]:
        release.wait()
        return (PUBLIC_V4,)

    async def scenario() -> None:
        resolver = SystemResolver(seconds=60, getaddrinfo=look_up)
        first = asyncio.create_task(resolver.resolve("a.example"))
        second = asyncio.create_task(resolver.resolve("a.example"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        release.set()
        assert await second == (PUBLIC_V4,)

    try:
        asyncio.run(scenario())
    finally:
        release.set()


def test_localhost_is_never_looked_up() -> None:
    """`localhost` is this machine whatever a DNS says, by its allowed addresses."""
    resolver = FakeResolver({}, default=(PUBLIC_V4,))
    for networks, expected in (
        (["127.0.0.0/8", "::1/128"], ["127.0.0.1", "::1"]),
        (["127.0.0.0/8"], ["127.0.0.1"]),
        (["::1/128"], ["::1"]),
    ):
        allow = parse_networks(networks)
        url = parse_callback_url("http://app.localhost:5000/", allow)
        found = asyncio.run(reachable_addresses(url, resolver, allow))
        assert [str(address) for address in found] == expected
    assert resolver.asked == []


def test_families_take_turns() -> None:
    """A host with many IPv6 addresses that lead nowhere is still tried by IPv4."""
    v6 = [f"2a00:1450::{n}" for n in range(1, 9)]
    url = parse_callback_url("http://example.com/", ())
    resolver = FakeResolver({"example.com": [[*v6, PUBLIC_V4]]})
    found = asyncio.run(reachable_addresses(url, resolver, ()))
    assert [str(address) for address in found] == [v6[0], PUBLIC_V4, v6[1], v6[2]]


@pytest.mark.parametrize("answer", ["not an address", ""])
def test_answers_that_are_no_addresses(answer: str) -> None:
    """What a resolver gives is checked like all else that comes from outside."""
    url = parse_callback_url("http://example.com/", ())
    with pytest.raises(ResolveError):
        asyncio.run(reachable_addresses(url, FakeResolver({"example.com": [[answer]]}), ()))


def test_the_port_is_checked_where_the_name_leads() -> None:
    """A private name may have any port, but only where it leads into an allowed network."""
    allow = parse_networks(["10.0.0.0/8"])
    url = parse_callback_url("http://receiver:6379/", allow)
    inside = FakeResolver({"receiver": [["10.0.0.9"]]})
    assert len(asyncio.run(reachable_addresses(url, inside, allow))) == 1
    outside = FakeResolver({"receiver": [[PUBLIC_V4]]})
    with pytest.raises(ForbiddenAddressError) as caught:
        asyncio.run(reachable_addresses(url, outside, allow))
    assert PUBLIC_V4 not in str(caught.value)
    assert [str(address) for address in caught.value.addresses] == [PUBLIC_V4]


def test_the_package_stands_alone() -> None:
    """Sending webhooks loads nothing of decoding, and decoding nothing of webhooks."""
    code = (
        "import sys, darkroom_worker.webhooks\n"
        "heavy = {'torch', 'diffusers', 'PIL', 'celery', 'boto3', 'redis', 'fastapi'}\n"
        "ours = {m for m in sys.modules if m.startswith('darkroom_worker.')}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert all(m.startswith('darkroom_worker.webhooks') for m in ours), ours\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, darkroom_worker.program\n"
        "assert not [m for m in sys.modules if m.startswith('darkroom_worker.webhooks')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
