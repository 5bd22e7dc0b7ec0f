"""Which hosts may be asked, and which addresses dialled."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from legit_embedding.errors import ConfigurationError, EmbeddingError, InvalidItemError, SourceNotAllowedError
from legit_embedding.sources.hosts import HostPolicy, HostRule, as_address, is_public


def policy(*rules):
    return HostPolicy([HostRule.parse(rule) for rule in rules])


def allowed(url, *rules):
    """Whether a URL may be asked for under these rules."""
    try:
        policy(*rules).require_url(url)
    except SourceNotAllowedError:
        return False
    return True


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a.example", HostRule("a.example")),
        ("A.Example.", HostRule("a.example")),
        ("a.example:8080", HostRule("a.example", 8080)),
        ("*.a.example", HostRule("a.example", None, subdomains=True)),
        ("*.a.example:8443", HostRule("a.example", 8443, subdomains=True)),
        ("bücher.example", HostRule("xn--bcher-kva.example")),
        ("localhost", HostRule("localhost")),
        ("127.0.0.1:80", HostRule("127.0.0.1", 80)),
        ("::1", HostRule("::1")),
        ("[::1]:8080", HostRule("::1", 8080)),
        ("[0:0:0:0:0:0:0:1]", HostRule("::1")),
    ],
)
def test_a_rule_is_a_host_with_a_port_or_subdomains(text, rule):
    assert HostRule.parse(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "*.", "*a.example", "a.*.example", "*.*.example", "http://a.example", "https://a.example:80",
        "a.example/path", "a.example?q", "a.example#f", "user@a.example", "user:password@a.example", "a b", ":80",
        "a.example:port", "a.example:99999", "[::1", "*.127.0.0.1", "*.[::1]", "fe80::1%eth0", "a\\b", "[]@",
    ],
)  # fmt: skip
def test_what_is_no_rule_stops_the_start(text):
    with pytest.raises(ConfigurationError, match="LEGIT_ALLOWED_HOSTS"):
        HostRule.parse(text)


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/x",
        "https://a.example",
        "HTTPS://A.EXAMPLE./x?y#z",
        "http://a.example:8080/",
        "  http://a.example/x y",
    ],
)
def test_a_host_is_allowed_by_name_on_any_port(url):
    assert allowed(url, "a.example")


def test_without_rules_nothing_is_allowed():
    assert not allowed("https://a.example/")
    assert not policy().allows_address("127.0.0.1", 80)


@pytest.mark.parametrize(
    "host",
    ["b.example", "a.example.evil", "evil-a.example", "aXexample", "sub.a.example", "a.example%2eevil", "127.0.0.1"],
)
def test_another_host_is_not_allowed(host):
    assert not allowed(f"https://{host}/", "a.example")


def test_a_port_is_the_schemes_unless_the_url_names_one():
    assert allowed("http://a.example/", "a.example:80")
    assert allowed("https://a.example/", "a.example:443")
    assert not allowed("https://a.example/", "a.example:80")
    assert not allowed("http://a.example:0/", "a.example:80")


def test_subdomains_are_those_below_and_not_the_domain():
    assert allowed("https://x.a.example/", "*.a.example")
    assert allowed("https://x.y.a.example/", "*.a.example")
    assert not allowed("https://a.example/", "*.a.example")
    assert not allowed("https://xa.example/", "*.a.example")


def test_a_name_is_the_same_in_unicode_and_in_ascii():
    for url in ("https://bücher.example/", "https://xn--bcher-kva.example/", "https://BÜCHER.example/"):
        assert allowed(url, "bücher.example")
        assert allowed(url, "xn--bcher-kva.example")


def test_an_address_is_the_same_in_every_spelling():
    assert allowed("http://[0:0:0:0:0:0:0:1]:80/", "::1")
    assert allowed("http://①②⑦.0.0.1/", "127.0.0.1")
    assert not allowed("http://127.0.0.1/", "①②⑦.0.0.2")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/x", "file:///etc/passwd", "gopher://a.example/", "data:image/png;base64,AAAA", "a.example/x",
        "//a.example/x", "http:///x", "http://", "https:a.example", "", "http://[::1", "http://a.example:port/",
        "http://a.example:99999/", "javascript:alert(1)", "http://a.example\\@b.example/", "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_http_url_is_an_invalid_item(url):
    with pytest.raises(InvalidItemError):
        policy("a.example", "b.example").require_url(url)


@pytest.mark.parametrize("user", ["user", "user:password", ":password", "a.example", "user:", "a.example:80"])
@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_password_is_refused_and_not_repeated(scheme, user):
    with pytest.raises(InvalidItemError, match="user name or password") as caught:
        policy("a.example", "b.example").require_url(f"{scheme}://{user}@b.example/")
    assert "b.example" not in str(caught.value)


def test_the_url_that_was_checked_is_the_one_to_dial():
    """Parsed once, by the parser that dials."""
    assert policy("a.example").require_url("http://A.example:8080/x y").raw_host == "a.example"


@given(st.text() | st.text("htp:/@\\.aexmpl#?%[]0127 \t\n", max_size=40).map(lambda rest: f"http://{rest}"))
@example("http://[]@")
def test_any_text_is_allowed_or_refused_with_an_error_of_ours(text):
    try:
        url = policy("a.example").require_url(text)
    except EmbeddingError:
        return
    assert (url.raw_host.rstrip("."), url.user, url.password) == ("a.example", None, None)


# -- addresses ---------------------------------------------------------------------------------------------------------

NOT_PUBLIC = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "4000::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_not_dialled(address):
    """Private, loopback, link-local, multicast, reserved; also where IPv6 carries such an IPv4 address."""
    assert not policy("a.example", "*.b.example").allows_address(address, 80)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_a_public_address_is_dialled(address):
    assert policy("a.example").allows_address(address, 80)


@pytest.mark.parametrize("text", ["", "a.example", "localhost", "127.1", "2130706433", "0x7f000001", "1.1.1.1.1"])
def test_what_is_no_address_is_never_dialled(text):
    assert not policy(text or "a").allows_address(text, 80)


def test_the_operator_may_name_an_address():
    named = policy("10.0.0.7", "127.0.0.1:8080", "127.0.0.1:9090", "::1", "a.example")
    assert named.allows_address("10.0.0.7", 1)
    assert named.allows_address("::ffff:10.0.0.7", 1)
    assert named.allows_address("::1", 80)
    assert named.allows_address("127.0.0.1", 8080)
    assert named.allows_address("127.0.0.1", 9090)
    assert not named.allows_address("127.0.0.1", 80)
    assert not named.allows_address("10.0.0.8", 1)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_counts_as_itself(address):
    """However an IPv4 address is wrapped, it is public where it is public bare; 6to4 and Teredo never are."""
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert as_address(wrapped) == address
        assert policy().allows_address(wrapped, 80) == is_public(address)
    assert not policy().allows_address(f"::{address}", 80)
    assert not policy().allows_address(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))), 80)


@given(st.ip_addresses())
def test_no_address_is_public_that_is_private_in_any_sense(address):
    if policy().allows_address(str(address), 80):
        bare = as_address(str(address))
        assert not any((bare.is_private, bare.is_loopback, bare.is_link_local, bare.is_multicast, bare.is_unspecified))
        assert not bare.is_reserved


@given(st.ip_addresses(), st.integers(1, 65535))
def test_a_rule_for_an_address_opens_that_address_and_port_alone(address, port):
    text = f"[{address}]" if address.version == 6 else str(address)
    only = policy(f"{text}:{port}")
    assert only.allows_address(str(address), port)
    assert only.allows_address(str(address), port % 65535 + 1) == is_public(as_address(str(address)))
