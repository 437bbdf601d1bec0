"""Where webhooks may go: the form of a callback URL, and the addresses it may reach.

The API asks when a job is submitted, without looking a name up. The sender asks again, and asks for
every address that a name resolves to, when it connects: what was true at submission may have
changed. Both read a URL here, so that no two parsers can disagree about its host.

The rules:

- `http` and `https`; no user name, no fragment; only characters that a URL may hold.
- A host is an address in its one canonical form, or a name of letters, digits and hyphens. What
  `getaddrinfo` would also take for an address (`0x7f000001`, `127.1`, `2130706433`) is refused, and
  so is a full stop at the end.
- An address is public unicast, or lies in a network that the operator allows.
- A name that only a private network knows (`localhost`, one label, `.internal`, `.local` and so on)
  is refused unless networks are allowed; `localhost` needs loopback among them. It is never looked
  up: it means 127.0.0.1 and ::1.
- Public hosts are reached at the ports 80, 443 and 8000 to 8999, hosts in allowed networks at any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 2048
MAX_NAME = 253
DEFAULT_PORTS = {"http": 80, "https": 443}
PUBLIC_PORTS = frozenset({80, 443, *range(8000, 9000)})
LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

_PRIVATE_SUFFIXES = (
    *("localhost", "local", "localdomain", "internal", "intranet", "private"),
    *("corp", "home", "lan", "test", "home.arpa"),
)

_REFUSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "127.0.0.0/8"),  # this host: unspecified, loopback
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # private
        "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata at 100.100.100.200
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "168.63.129.16/32",  # Azure's host
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata at 192.0.0.192
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # documentation
        *("192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24"),  # AS112, AMT
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        *("224.0.0.0/4", "240.0.0.0/4"),  # multicast; reserved, broadcast
    )
)

_GLOBAL_V6 = IPv6Network("2000::/3")
"""Nothing else was ever given out for global unicast. Outside lie loopback, unspecified, addresses
with an IPv4 address inside (mapped, compatible, SIIT, NAT64), unique local, link-local, site-local
and multicast addresses."""

_REFUSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID, benchmarks, other protocol assignments
        *("2001:db8::/32", "3fff::/20"),  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the former 6bone
    )
)

_ISATAP = (0x00005EFE, 0x02005EFE)
"""What stands before the IPv4 address in the interface identifier of an ISATAP address."""

_FORBIDDEN_CHARACTER = re.compile(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]")
_URL = re.compile(
    r"(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?P<fragment>.*)"
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*)(?::(?P<port>.*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class CallbackUrlError(ValueError):
    """A callback URL that nothing will be sent to. The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """A callback URL in parts, each of which has been checked."""

    scheme: str
    host: str
    """A name in lower case, or an address without brackets."""
    address: Address | None
    port: int
    target: str
    """Path and query, as they came."""

    @property
    def authority(self) -> str:
        """What the header `Host` says."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_localhost(self) -> bool:
        """Whether the name means this machine by definition (RFC 6761)."""
        return self.host == "localhost" or self.host.endswith(".localhost")


def parse_networks(networks: Sequence[str]) -> tuple[Network, ...]:
    """Read the networks of the setting `webhook_allow`, which has checked them."""
    return tuple(ip_network(network) for network in networks)


def check_callback_url(url: str, allow: Sequence[Network]) -> None:
    """Check a callback URL as far as that is possible without looking its host up.

    Raises:
        CallbackUrlError: it cannot be one, or points where webhooks may not go.
    """
    parse_callback_url(url, allow)


def parse_callback_url(url: str, allow: Sequence[Network]) -> CallbackUrl:
    """Take a callback URL apart and check each part.

    Raises:
        CallbackUrlError: it cannot be one, or points where webhooks may not go.
    """
    match = _split(url)
    scheme = match["scheme"].lower()
    authority = _AUTHORITY.fullmatch(match["authority"])
    if authority is None:
        raise CallbackUrlError("the host is malformed; an IPv6 address needs brackets, once")
    host, address = _read_host(authority["host"])
    port = DEFAULT_PORTS[scheme] if authority["port"] is None else _read_port(authority["port"])
    target = match["target"]
    parsed = CallbackUrl(
        scheme, host, address, port, target if target.startswith("/") else f"/{target}"
    )
    _check_destination(parsed, allow)
    return parsed


def may_reach(address: Address, port: int, allow: Sequence[Network]) -> bool:
    """Tell whether a webhook may go to a port of an address."""
    return _is_in(address, allow) or (port in PUBLIC_PORTS and _is_public(address))


def is_allowed_address(address: Address, allow: Sequence[Network]) -> bool:
    """Tell whether webhooks may go to an address: a public one, or one in an allowed network."""
    return _is_in(address, allow) or _is_public(address)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    """Tell whether a network holds an address. One with a zone (`fe80::1%eth0`) is in none."""
    zone = getattr(address, "scope_id", None)
    return zone is None and any(address in network for network in networks)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not _is_in(address, _REFUSED_V4)
    return (
        _is_in(address, (_GLOBAL_V6,))
        and not _is_in(address, _REFUSED_V6)
        and (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP
    )


def _split(url: str) -> re.Match[str]:
    """Split scheme, authority and the rest of a URL that holds nothing but a URL's characters."""
    if len(url) > MAX_URL:
        raise CallbackUrlError(f"{len(url)} characters; at most {MAX_URL} are allowed")
    if forbidden := _FORBIDDEN_CHARACTER.search(url):
        raise CallbackUrlError(
            f"the character U+{ord(forbidden[0]):04X} at position {forbidden.start() + 1} cannot "
            f"stand in a URL; percent-encode it in the path, write a host as xn--…"
        )
    match = _URL.fullmatch(url)
    if match is None or match["scheme"].lower() not in DEFAULT_PORTS:
        raise CallbackUrlError("http://… or https://… expected")
    if match["fragment"]:
        raise CallbackUrlError("a fragment (#…) is never sent; leave it out")
    if "@" in match["authority"]:
        raise CallbackUrlError("a user name or password (…@) is not allowed")
    if not match["authority"]:
        raise CallbackUrlError("the host is missing")
    return match


def _read_port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
        raise CallbackUrlError("the port is not a plain number from 1 to 65535")
    return int(text)


def _read_host(text: str) -> tuple[str, Address | None]:
    """Read a host: an address in canonical form, with brackets if it is IPv6, or a name."""
    if text.startswith("["):
        return _read_ipv6(text[1:-1])
    if "%" in text:
        raise CallbackUrlError("the host holds a percent sign; write it plainly")
    name = text.lower()
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _read_ipv4(name)
    if name.endswith("."):
        raise CallbackUrlError("the host ends with a full stop; leave it out")
    if len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise CallbackUrlError(
            "the host is not a name of letters, digits and hyphens, at most 63 between full stops "
            f"and {MAX_NAME} in all"
        )
    return name, None


def _read_ipv4(text: str) -> tuple[str, Address]:
    try:
        return text, IPv4Address(text)
    except AddressValueError:
        raise CallbackUrlError(
            "the host is a number but no address; write an IPv4 address as four decimal numbers "
            "from 0 to 255 without leading zeros"
        ) from None


def _read_ipv6(text: str) -> tuple[str, Address]:
    if "%" in text:
        raise CallbackUrlError("an IPv6 address with a zone (%…) is not allowed")
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise CallbackUrlError("what stands in brackets is no IPv6 address") from None
    if str(address) != text:
        raise CallbackUrlError(f"write the IPv6 address in its canonical form: [{address}]")
    return text, address


def _check_destination(url: CallbackUrl, allow: Sequence[Network]) -> None:
    """Check host and port as far as that is possible without looking a name up."""
    if url.address is not None:
        if not is_allowed_address(url.address, allow):
            raise CallbackUrlError(
                f"{url.address} is not a public address, and DARKROOM_WEBHOOK_ALLOW does not "
                "allow it"
            )
        on_purpose = _is_in(url.address, allow)
    else:
        on_purpose = _is_private_name(url.host)
        if url.is_localhost and not any(_is_in(address, allow) for address in LOOPBACK):
            raise CallbackUrlError(
                f"{url.host} is this machine, and DARKROOM_WEBHOOK_ALLOW does not allow loopback"
            )
        if on_purpose and not allow:
            raise CallbackUrlError(
                f"{url.host} is a name of a private network, and DARKROOM_WEBHOOK_ALLOW allows none"
            )
    if not on_purpose and url.port not in PUBLIC_PORTS:
        raise CallbackUrlError(
            f"port {url.port} is not allowed; public hosts are reached at 80, 443 and 8000 to 8999"
        )


def _is_private_name(name: str) -> bool:
    return "." not in name or f".{name}".endswith(
        tuple(f".{suffix}" for suffix in _PRIVATE_SUFFIXES)
    )
