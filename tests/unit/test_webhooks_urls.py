"""Where webhooks may go, before anything is looked up or connected to."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from darkroom_infra.callbacks import (
    CallbackUrlError,
    check_callback_url,
    is_allowed_address,
    may_reach,
    parse_callback_url,
    parse_networks,
)
from tests.hostile_urls import HOSTILE_ANSWERS, HOSTILE_URLS, PUBLIC_V4, PUBLIC_V6

LOOPBACK = parse_networks(["127.0.0.0/8", "::1/128"])
OPEN_PORT = "8123"


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_hostile_urls_are_refused(url: str) -> None:
    """A URL of the corpus is refused when it is submitted, in words without its raw bytes."""
    with pytest.raises(CallbackUrlError) as caught:
        check_callback_url(url.replace("PORT", OPEN_PORT), ())
    assert len(str(caught.value)) > 15
    assert str(caught.value).replace("…", "").isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        ("HTTPS://Example.COM/a?b=c&d", "example.com", 443, "/a?b=c&d", "example.com"),
        ("http://example.com?x=1", "example.com", 80, "/?x=1", "example.com"),
        ("https://example.com:443/", "example.com", 443, "/", "example.com"),
        ("https://example.com:80/", "example.com", 80, "/", "example.com:80"),
        ("http://example.com:8080/@x", "example.com", 8080, "/@x", "example.com:8080"),
        ("https://hooks.example.com:8443/%0d%0a//..", "hooks.example.com", 8443, "/%0d%0a//..",
         "hooks.example.com:8443"),
        ("https://xn--exmple-cua.com/", "xn--exmple-cua.com", 443, "/", "xn--exmple-cua.com"),
        ("https://127.0.0.1.nip.io/", "127.0.0.1.nip.io", 443, "/", "127.0.0.1.nip.io"),
        ("https://1.0x7f.example/", "1.0x7f.example", 443, "/", "1.0x7f.example"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/", "8.8.8.8"),
        ("https://[2a00:1450::1]:8999/", "2a00:1450::1", 8999, "/", "[2a00:1450::1]:8999"),
        ("https://[2a00:1450::1]/", "2a00:1450::1", 443, "/", "[2a00:1450::1]"),
    ],
)  # fmt: skip
def test_good_urls(url: str, host: str, port: int, target: str, authority: str) -> None:
    """A plain URL of a public host passes, and is taken apart as it will be sent."""
    parsed = parse_callback_url(url, ())
    assert (parsed.host, parsed.port, parsed.target, parsed.authority) == (
        host, port, target, authority,
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:5000/hook",
        "http://app.localhost:5000/",
        "http://127.0.0.1:5000/",
        "http://127.0.0.2/",
        "http://[::1]:49152/",
        "http://receiver:3000/",
        "http://receiver.internal:3000/",
    ],
)
def test_allowed_networks_open_on_purpose(url: str) -> None:
    """With loopback allowed a developer's receiver can be reached by any name, at any port."""
    check_callback_url(url, LOOPBACK)


@pytest.mark.parametrize(
    ("url", "networks"),
    [
        ("http://localhost/", ["10.0.0.0/8"]),
        ("http://127.0.0.1/", ["10.0.0.0/8", "::1/128"]),
        ("http://[::1]/", ["127.0.0.0/8"]),
        ("http://[::ffff:7f00:1]/", ["127.0.0.0/8", "::1/128"]),
        ("http://10.0.0.1/", ["127.0.0.0/8"]),
        ("http://169.254.169.254/", ["127.0.0.0/8"]),
        ("http://2130706433/", ["127.0.0.0/8"]),
        ("http://127.1/", ["127.0.0.0/8"]),
        ("http://0177.0.0.1/", ["127.0.0.0/8"]),
        ("http://example.com:6379/", ["127.0.0.0/8"]),
        ("http://8.8.8.8:6379/", ["127.0.0.0/8"]),
    ],
)
def test_allowed_networks_open_nothing_else(url: str, networks: list[str]) -> None:
    """What is allowed opens its own addresses only, and not in other ways of writing them."""
    with pytest.raises(CallbackUrlError):
        check_callback_url(url, parse_networks(networks))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "http://… or https://"),
        ("http://a@example.com/", "user name"),
        ("http://example.com/#a", "fragment"),
        ("http://example.com/\r\n", r"U\+000D at position 20"),
        ("http://ex\u00e4mple.com/", r"U\+00E4 at position 10"),
        ("http://127.1/", "four decimal numbers"),
        ("http://[::1%25eth0]/", "zone"),
        ("http://[0:0::1]/", r"canonical form: \[::1\]"),
        ("http://10.0.0.1/", "not a public address"),
        ("http://localhost/", "does not allow loopback"),
        ("http://redis/", "private network"),
        ("http://example.com./", "full stop"),
        ("http://example.com:22/", "port 22"),
        ("http://example.com:/", "port is not"),
        ("http://%6c/", "percent sign"),
        ("http://" + "a" * 2048, "2055 characters"),
    ],
)
def test_the_words_say_what_is_wrong(url: str, words: str) -> None:
    """The text of an error tells its reader what to change."""
    with pytest.raises(CallbackUrlError, match=words):
        check_callback_url(url, ())


@pytest.mark.parametrize("answers", HOSTILE_ANSWERS)
def test_forbidden_addresses(answers: tuple[str, ...]) -> None:
    """Each DNS answer of the corpus holds an address that is refused."""
    assert not all(is_allowed_address(ip_address(answer), ()) for answer in answers)


REFUSED_NETWORKS = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
    "::/128", "::1/128", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96",
    "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28",
    "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10",
    "ff00::/8", "2a00:1450::5efe:0:0/96", "2a00:1450::200:5efe:0:0/96",
]  # fmt: skip


@pytest.mark.parametrize("network", REFUSED_NETWORKS)
def test_whole_networks_are_refused(network: str) -> None:
    """The first, the last and some addresses between of each special network are refused."""
    whole = ip_network(network)
    chance = random.Random(network)
    numbers = [0, whole.num_addresses - 1]
    numbers += [chance.randrange(whole.num_addresses) for _ in range(50)]
    assert not any(is_allowed_address(whole[number], ()) for number in numbers)


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC_V4, PUBLIC_V6, "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255",
        "100.128.0.0", "126.255.255.255", "128.0.0.0", "168.63.129.15", "168.63.129.17",
        "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0",
        "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
        "2001:200::1", "2001:db7:ffff::1", "2001:db9::1", "2003::1", "2606:4700::1111",
        "2a00:1450::5eff:0:1",
    ],
)  # fmt: skip
def test_public_addresses_pass(address: str) -> None:
    """The neighbours of special networks are ordinary receivers."""
    assert is_allowed_address(ip_address(address), ())


def test_nothing_passes_that_python_calls_private() -> None:
    """Of many addresses drawn by chance, none passes that `ipaddress` knows not to be global."""
    chance = random.Random(20261123)
    addresses: list[IPv4Address | IPv6Address] = [
        *(IPv4Address(chance.getrandbits(32)) for _ in range(20_000)),
        *(IPv6Address(chance.getrandbits(128)) for _ in range(10_000)),
        *(IPv6Address(0x2001 << 112 | chance.getrandbits(112)) for _ in range(10_000)),
    ]
    passed = [address for address in addresses if is_allowed_address(address, ())]
    assert len(passed) > 10_000
    assert all(address.is_global and not address.is_multicast for address in passed)


def test_allowed_addresses() -> None:
    """A network opens its addresses at any port; public ones stay open at theirs."""
    allow = parse_networks(["10.1.0.0/16", "fd00::/8"])
    assert is_allowed_address(ip_address("10.1.2.3"), allow)
    assert not is_allowed_address(ip_address("10.2.0.1"), allow)
    assert not is_allowed_address(ip_address("::ffff:10.1.2.3"), allow)
    assert not is_allowed_address(ip_address("fd00::1%eth0"), allow)
    assert may_reach(ip_address("fd00::1"), 6379, allow)
    assert may_reach(ip_address(PUBLIC_V4), 8080, allow)
    assert not may_reach(ip_address(PUBLIC_V4), 6379, allow)
