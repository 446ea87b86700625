"""Which media URLs may be fetched: domains, addresses, folder. Decides only; `download` and `local_file` ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import httpx

from trifocal.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class ForbiddenError(Exception):
    """A URL or an address that may not be fetched from."""


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(word) for word in text.split())


# IANA's registries of special addresses. Written out: what `ipaddress` calls global differs between Pythons.
_NOT_PUBLIC_V4 = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 "
    "203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
# Only 2000::/3 is public. What embeds an IPv4 address (mapped, NAT64, 6to4, Teredo) could lead to any of the above.
_PUBLIC_V6 = _networks("2000::/3")
_NOT_PUBLIC_V6 = _networks("2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20")
_NAT64 = ip_network("64:ff9b::/96")
# What a domain that the operator has listed may resolve to as well: the networks that organisations use inside.
_INSIDE = _networks("10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1/128 fc00::/7")
_ANYWHERE = _networks("0.0.0.0/0 ::/0")


@dataclass(frozen=True)
class FetchPolicy:
    """What may be reached by media URLs.

    `domains`: if any are listed, http(s) URLs must name one of them, and those may lie on private networks.
    `networks`: addresses in them are allowed for any host, public or not. `local_root`: folder of file: URLs.
    `proxy`: fetches go through it, and it decides about addresses; this process then looks up no names.
    """

    local_root: Path | None = None
    domains: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    proxy: str | None = None

    @classmethod
    def from_flags(
        cls,
        allowed_local_media_path: str | None = None,
        allowed_media_domains: Sequence[str] | None = None,
        allowed_media_networks: Sequence[str] | None = None,
        media_proxy: str | None = None,
    ) -> FetchPolicy:
        """The policy of the server's flags. Raises `ConfigError` naming the flag."""
        return cls(
            _folder(allowed_local_media_path),
            frozenset(_domain(name) for name in allowed_media_domains or ()),
            tuple(_network(text) for text in allowed_media_networks or ()),
            _proxy(media_proxy),
        )

    @classmethod
    def unrestricted(cls) -> FetchPolicy:
        """Everything that the process itself may open: for scripts, which run on their user's own account."""
        return cls(Path("/"), networks=_ANYWHERE)

    def check_url(self, url: httpx.URL) -> None:
        """Raise `ForbiddenError` for a URL that must not be asked for, whatever its host resolves to."""
        if url.scheme not in ("http", "https"):
            raise ForbiddenError(f"the scheme {url.scheme[:20]!r} is neither http nor https")
        host = host_of(url)
        if not host:
            raise ForbiddenError("the URL names no host")
        if self.domains and host not in self.domains:
            raise ForbiddenError(f"the host {host[:80]!r} is not one of --allowed-media-domains")
        if self.proxy is not None and _is_literal(host):  # names are for the proxy to judge
            self.check_addresses(host, [host])

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Raise `ForbiddenError` unless a connection may be made to every address that `host` resolved to.

        One bad address among good ones is a host that plays tricks; which one it was is not told.
        """
        is_listed = host.lower().rstrip(".") in self.domains
        if not addresses or not all(self._allows(address, is_listed) for address in addresses):
            raise ForbiddenError(
                f"the host {host[:80]!r} is not on the public internet (--allowed-media-networks, "
                "--allowed-media-domains)"
            )

    def _allows(self, text: str, is_listed_domain: bool) -> bool:
        address = ip_address(text.partition("%")[0])
        is_allowed = (
            _lies_in(address, self.networks) or _is_public(address) or (is_listed_domain and _lies_in(address, _INSIDE))
        )
        embedded = _embedded(address)
        return is_allowed and (embedded is None or self._allows(str(embedded), False))


def host_of(url: httpx.URL) -> str:
    """The host as it is looked up: lower case, international names in ASCII, no final dot, no brackets."""
    return url.raw_host.decode("ascii").lower().rstrip(".")


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not _lies_in(address, _NOT_PUBLIC_V4)
    return _lies_in(address, _PUBLIC_V6) and not _lies_in(address, _NOT_PUBLIC_V6)


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that a connection to this one would reach through a translator."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _lies_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _folder(path: str | None) -> Path | None:
    if not path:
        return None
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"--allowed-local-media-path {path!r} is not a folder")
    return root


def _domain(name: str) -> str:
    try:
        host = host_of(httpx.URL(scheme="http", host=name.strip()))
    except httpx.InvalidURL:
        host = ""
    if not host or set(host) & set("/:*@ "):
        raise ConfigError(f"--allowed-media-domains: {name!r} is not the name of a host, like media.example.org")
    return host


def _network(text: str) -> Network:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise ConfigError(f"--allowed-media-networks: {text!r} is not a network, like 10.0.0.0/8 or fd00::/8") from None


def _proxy(text: str | None) -> str | None:
    if not text:
        return None
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--media-proxy {text!r} is not a URL, like http://proxy.example.org:3128")
    return text
