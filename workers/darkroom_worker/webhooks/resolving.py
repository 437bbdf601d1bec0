"""From a callback URL to the addresses that may be connected to: looked up once, all checked."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Protocol

from darkroom_infra.callbacks import LOOPBACK, Address, CallbackUrl, Network, may_reach

LOOKUP_SECONDS = 5.0
LOOKUPS = 64
MAX_ADDRESSES = 4


class ResolveError(Exception):
    """A name that cannot be resolved just now. The text says why."""


class ForbiddenAddressError(Exception):
    """A host that has an address which webhooks may not go to.

    The text does not name the address: the owner of a job need not learn what names mean inside
    the network. `addresses` is for the log.
    """

    def __init__(self, host: str, addresses: Sequence[Address]) -> None:
        super().__init__(f"{host} leads to an address or a port that webhooks may not go to")
        self.host = host
        self.addresses = tuple(addresses)


class Resolver(Protocol):
    """Looks up the addresses of a name."""

    async def resolve(self, host: str) -> Sequence[str]:
        """Give the addresses of a name as `getaddrinfo` does: text, in the order to try them.

        Raises:
            ResolveError: the name has none, or no answer came in time.
        """


class SystemResolver:
    """Asks the system's `getaddrinfo`.

    It blocks, so each lookup has a thread. `loop.getaddrinfo` would share half a dozen with all
    else that blocks: a few names whose servers never answer would hold up every other lookup. Here
    such a name holds one place out of `LOOKUPS`, however many ask for it, and no longer than
    `seconds`. The threads are daemons: they do not hold up the end of the process either.

    For use in one event loop.
    """

    def __init__(
        self,
        seconds: float = LOOKUP_SECONDS,
        getaddrinfo: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        self._seconds = seconds
        self._getaddrinfo = getaddrinfo or _getaddrinfo
        self._places = asyncio.Semaphore(LOOKUPS)
        self._lookups: dict[str, asyncio.Task[Sequence[str]]] = {}

    async def resolve(self, host: str) -> Sequence[str]:
        """Look a name up, or wait for the lookup of the same name that is under way.

        Raises:
            ResolveError: the name has no address, or no answer came in time.
        """
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(host))
            self._lookups[host] = lookup
            lookup.add_done_callback(lambda done: self._forget(host, done))
        return await asyncio.shield(lookup)

    async def _look_up(self, host: str) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._seconds), self._places:
                return await self._in_thread(host)
        except TimeoutError:
            raise ResolveError(f"no answer about {host} within {self._seconds:g} s") from None
        except socket.gaierror as error:
            raise ResolveError(f"{host} cannot be resolved: {error.strerror}") from error
        except (OSError, UnicodeError, RuntimeError) as error:  # RuntimeError: no thread
            raise ResolveError(f"{host} cannot be resolved: {error}") from error

    def _forget(self, host: str, lookup: asyncio.Task[Sequence[str]]) -> None:
        del self._lookups[host]
        if not lookup.cancelled():
            lookup.exception()  # seen, even if nobody waits for it any more

    def _in_thread(self, host: str) -> asyncio.Future[Sequence[str]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[str]] = loop.create_future()

        def look_up() -> None:
            try:
                found, fault = self._getaddrinfo(host), None
            except (OSError, UnicodeError) as error:
                found, fault = (), error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, future, found, fault)

        threading.Thread(target=look_up, name="webhook-lookup", daemon=True).start()
        return future


async def reachable_addresses(
    url: CallbackUrl, resolver: Resolver, allow: Sequence[Network]
) -> list[Address]:
    """Find the addresses to try for a URL: its own, or what one lookup gives.

    Raises:
        ForbiddenAddressError: one of them, even if only one, may not be reached.
        ResolveError: there is none.
    """
    addresses = await _addresses(url, resolver, allow)
    forbidden = [address for address in addresses if not may_reach(address, url.port, allow)]
    if forbidden:
        raise ForbiddenAddressError(url.host, forbidden)
    return _alternate(addresses)[:MAX_ADDRESSES]


async def _addresses(
    url: CallbackUrl, resolver: Resolver, allow: Sequence[Network]
) -> list[Address]:
    if url.address is not None:
        return [url.address]
    if url.is_localhost:
        return [address for address in LOOPBACK if may_reach(address, url.port, allow)]
    found = await resolver.resolve(url.host)
    try:
        addresses = [ip_address(each) for each in dict.fromkeys(found)]
    except ValueError as error:
        raise ResolveError(f"{url.host} cannot be resolved: {error}") from error
    if not addresses:
        raise ResolveError(f"{url.host} has no address")
    return addresses


def _alternate(addresses: Sequence[Address]) -> list[Address]:
    """Let IPv4 and IPv6 take turns, so that one that leads nowhere does not use up every try."""
    seen: Counter[int] = Counter()

    def turn(address: Address) -> int:
        seen[address.version] += 1
        return seen[address.version]

    return sorted(addresses, key=turn)


def _getaddrinfo(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _settle(
    future: asyncio.Future[Sequence[str]], found: Sequence[str], fault: Exception | None
) -> None:
    if future.done():
        return
    if fault is None:
        future.set_result(found)
    else:
        future.set_exception(fault)
