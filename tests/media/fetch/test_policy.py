"""Which hosts and addresses media may come from: every kind of address, and every way to spell one."""

from __future__ import annotations

import socket

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifocal.errors import ConfigError
from trifocal.media.fetch.policy import FetchPolicy, ForbiddenError, host_of

PUBLIC = """
    1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 192.167.255.255
    223.255.255.255 2606:4700::1111 2001:4860:4860::8888 2a00:1450::1 2003::1
""".split()
NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.255.255.255 169.254.169.254
    172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.7
    203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fec0::1 fc00::1
    fd12:3456::1 ff02::1 ff0e::1 100::1 2001:db8::1 3fff::1 5f00::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1
    ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 2002:7f00:1:: 2002:808:808::
    2001:0:7f00:1:: 2001:10::1 4000::1 fe80::5efe:127.0.0.1
""".split()


def allows(policy: FetchPolicy, address: str, host: str = "name.example") -> bool:
    try:
        policy.check_addresses(host, [address])
    except ForbiddenError:
        return False
    return True


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert allows(FetchPolicy(), address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_everything_else_is_refused(address: str) -> None:
    assert not allows(FetchPolicy(), address)


def test_one_bad_address_spoils_all() -> None:
    with pytest.raises(ForbiddenError) as caught:
        FetchPolicy().check_addresses("tricky.example", ["1.1.1.1", "10.1.2.3"])
    assert "10.1.2.3" not in str(caught.value) and "tricky.example" in str(caught.value)
    with pytest.raises(ForbiddenError):
        FetchPolicy().check_addresses("nobody.example", [])


def test_networks_open_what_they_name() -> None:
    policy = FetchPolicy.from_flags(allowed_media_networks=["10.1.0.0/16", "fd00::/8", "169.254.169.254"])
    for address, expected in {
        "10.1.2.3": True, "10.2.0.1": False, "fd00::7": True, "fc00::7": False, "1.1.1.1": True,
        "169.254.169.254": True, "169.254.169.253": False, "::ffff:10.1.2.3": False,
    }.items():  # fmt: skip
        assert allows(policy, address) == expected, address


def test_a_translator_opens_only_what_is_open_anyway() -> None:
    """NAT64 is what reaches the IPv4 internet from networks without it; it must not lead around the checks."""
    policy = FetchPolicy.from_flags(allowed_media_networks=["64:ff9b::/96"])
    assert allows(policy, "64:ff9b::808:808") and not allows(policy, "64:ff9b::7f00:1")
    mapped = FetchPolicy.from_flags(allowed_media_networks=["::ffff:0:0/96"])
    assert allows(mapped, "::ffff:8.8.8.8") and not allows(mapped, "::ffff:169.254.169.254")


def test_listed_domains_are_the_only_ones_and_may_lie_inside() -> None:
    policy = FetchPolicy.from_flags(allowed_media_domains=["Media.Corp", "bücher.example."])
    for url in (
        "http://media.corp/x",
        "https://MEDIA.corp.:8443/x",
        "http://xn--bcher-kva.example/",
        "http://bücher.example",
    ):
        policy.check_url(httpx.URL(url))
    for url in ("http://example.org/", "http://sub.media.corp/", "http://media.corp.evil.example/", "http://xmedia.corp",
                "http://10.0.0.1/", "http://media.corp@evil.example/", "http://evil.example#media.corp"):  # fmt: skip
        with pytest.raises(ForbiddenError, match="allowed-media-domains"):
            policy.check_url(httpx.URL(url))
    for address in ("10.0.0.1", "192.168.1.1", "127.0.0.1", "::1", "fd00::1", "1.1.1.1"):
        assert allows(policy, address, "media.corp"), address
    for address in ("169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "::ffff:10.0.0.1", "64:ff9b::a00:1"):
        assert not allows(policy, address, "media.corp"), address


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b", "gopher://a:70/_x", "//a/b", "http:///x", "http://"]
)
def test_only_http(url: str) -> None:
    with pytest.raises(ForbiddenError):
        FetchPolicy().check_url(httpx.URL(url))


def test_a_proxy_resolves_names_but_literals_are_checked() -> None:
    policy = FetchPolicy.from_flags(media_proxy="http://proxy.corp:3128")
    policy.check_url(httpx.URL("http://anything.example/"))
    for url in ("http://127.0.0.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://169.254.169.254/latest/"):
        with pytest.raises(ForbiddenError, match="public internet"):
            policy.check_url(httpx.URL(url))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"allowed_media_networks": ["10.0.0.0/99"]}, "--allowed-media-networks"),
        ({"allowed_media_networks": ["intranet"]}, "--allowed-media-networks"),
        ({"allowed_media_domains": ["http://a.example/x"]}, "--allowed-media-domains"),
        ({"allowed_media_domains": [""]}, "--allowed-media-domains"),
        ({"allowed_media_domains": ["a.example:80"]}, "--allowed-media-domains"),
        ({"media_proxy": "proxy.corp"}, "--media-proxy"),
        ({"media_proxy": "http://"}, "--media-proxy"),
        ({"allowed_local_media_path": "/no/such/folder"}, "--allowed-local-media-path"),
    ],
)
def test_bad_flags(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FetchPolicy.from_flags(**flags)  # type: ignore[arg-type]


ODD_LOOPBACKS = (
    "127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 127.0.0.1. localhost 0 0.0.0.0".split()
)


@pytest.mark.parametrize("host", ODD_LOOPBACKS)
def test_odd_spellings_of_loopback(host: str) -> None:
    """Refused as a URL, or whatever the system's resolver makes of them is what is checked."""
    try:
        name = host_of(httpx.URL(f"http://{host}/"))
    except httpx.InvalidURL:
        return
    found = [str(answer[4][0]) for answer in socket.getaddrinfo(name, 80)]
    assert found and not any(allows(FetchPolicy(), address) for address in found)


@given(st.ip_addresses(v=4))
def test_embedding_never_helps(address: object) -> None:
    """However an address is wrapped, it is not reached where it could not be reached bare."""
    number = int(address)  # type: ignore[call-overload]
    wrapped = [
        f"::ffff:{address}",
        f"::{address}",
        f"64:ff9b::{address}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::",
    ]
    assert not any(allows(FetchPolicy(), text) for text in wrapped)
    translators = FetchPolicy.from_flags(allowed_media_networks=["64:ff9b::/96", "2002::/16", "::ffff:0:0/96"])
    for text in wrapped:
        assert not allows(translators, text) or allows(FetchPolicy(), str(address))
