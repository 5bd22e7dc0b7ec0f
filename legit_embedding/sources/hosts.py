"""Which hosts may be fetched from, and which addresses may be dialled. Pure.

A host is allowed by name in `LEGIT_ALLOWED_HOSTS`. That is not enough: its name may resolve to an address inside the
site's own network, by mistake or by an attacker who owns the name. So an address that is not public is dialled only
where the setting names that very address (`10.0.0.7`, `127.0.0.1:8080`), which is then the operator's own decision.

URLs are parsed by yarl, as aiohttp parses them: with another parser the host that is checked and the host that is
dialled could be two.
"""

import ipaddress
import string
from collections.abc import Sequence
from dataclasses import dataclass

from yarl import URL

from legit_embedding.errors import ConfigurationError, InvalidItemError, SourceNotAllowedError

SCHEMES = frozenset({"http", "https"})
NAME = frozenset(string.ascii_lowercase + string.digits + "-._:")
"""What a host is written with once yarl has put it into ASCII; the colon is IPv6's."""

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of `LEGIT_ALLOWED_HOSTS`: a host, an optional port, and whether its subdomains count (`*.domain`)."""

    host: str
    port: int | None = None
    subdomains: bool = False

    @classmethod
    def parse(cls, text: str) -> "HostRule":
        """`host`, `host:port`, `*.domain`, `[v6]:port`.

        Raises:
            ConfigurationError: none of these.
        """
        bare = text.removeprefix("*.")
        authority = bare if bare.count(":") <= 1 or bare.startswith("[") else f"[{bare}]"
        try:
            url = parse_url(f"http://{authority}")
            alone = url == url.origin()
        except ValueError as error:
            raise ConfigurationError(f"LEGIT_ALLOWED_HOSTS: {text!r} is no host: {error}") from error
        rule = cls(host_of(url), url.explicit_port, bare != text)
        if not alone or not rule.host or not NAME.issuperset(rule.host):
            raise ConfigurationError(f"LEGIT_ALLOWED_HOSTS: {text!r} is neither host, host:port nor *.domain")
        if rule.subdomains and rule.address is not None:
            raise ConfigurationError(f"LEGIT_ALLOWED_HOSTS: {text!r}: an address has no subdomains")
        return rule

    def allows(self, host: str, port: int | None) -> bool:
        """Whether a URL on `host` and `port` may be fetched."""
        if self.port is not None and self.port != port:
            return False
        return host.endswith(f".{self.host}") if self.subdomains else host == self.host

    @property
    def address(self) -> Address | None:
        """The very address that the rule names, if it names one."""
        return as_address(self.host)


class HostPolicy:
    """All rules together."""

    def __init__(self, rules: Sequence[HostRule]) -> None:
        self._rules = tuple(rules)
        self._places = frozenset((rule.address, rule.port) for rule in rules if rule.address is not None)

    def require_url(self, text: str) -> URL:
        """The URL that `text` spells, if it may be fetched.

        Raises:
            InvalidItemError: not an http(s) URL, or one with a password in it.
            SourceNotAllowedError: its host is not in `LEGIT_ALLOWED_HOSTS`.
        """
        try:
            url = parse_url(text)
        except ValueError as error:
            raise InvalidItemError(f"url: {text!r:.200} is no URL: {error}") from error
        if url.user is not None or url.password is not None:
            raise InvalidItemError("url: a URL must carry no user name or password")
        if url.scheme not in SCHEMES or not url.raw_host:
            raise InvalidItemError(f"url: {text!r:.200} is no http or https URL")
        host = host_of(url)
        if not any(rule.allows(host, url.port) for rule in self._rules):
            raise SourceNotAllowedError(f"url: the host {host!r:.100} is not in LEGIT_ALLOWED_HOSTS")
        return url

    def allows_address(self, text: str, port: int) -> bool:
        """Whether this address may be dialled: a public one always, another only where a rule names it."""
        address = as_address(text)
        if address is None:
            return False
        return is_public(address) or not self._places.isdisjoint({(address, None), (address, port)})


def parse_url(text: str) -> URL:
    """The URL that `text` spells.

    Raises:
        ValueError: none.
    """
    try:
        return URL(text)
    except IndexError as error:  # yarl 1.25 stumbles over `http://[]@`
        raise ValueError("an authority that cannot be parsed") from error


def host_of(url: URL) -> str:
    """The host as rules compare it: in lower case, in ASCII, without the dot at the end."""
    return (url.raw_host or "").rstrip(".").lower()


def as_address(text: str) -> Address | None:
    """The IP address that `text` spells; None where it is a name. An IPv4 one inside an IPv6 one counts as IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address


def is_public(address: Address) -> bool:
    """Whether the address is on the public internet: not private, loopback, link-local, multicast or reserved."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in GLOBAL_UNICAST or address.sixtofour or address.teredo  # both carry any IPv4 address
    ):
        return False
    return address.is_global and not address.is_multicast
