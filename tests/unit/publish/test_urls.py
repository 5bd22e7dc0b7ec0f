"""Where results go: one Redis server, spelt in anybody's way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.errors import ConfigurationError
from legit_embedding.publish.urls import results_url
from legit_embedding.publish.wire import RedisWire


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("redis://host:6379/3", "redis://host:6379/3"),
        ("redis://", "redis://"),
        ("rediss://user:p%40ss@host/0", "rediss://user:p%40ss@host/0"),
        ("valkey://host/1", "redis://host/1"),
        ("valkeys://host/1", "rediss://host/1"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+socket:///run/redis.sock?virtual_host=2", "unix:///run/redis.sock?db=2"),
        ("redis+socket:///run/redis.sock?virtual_host=2&password=x", "unix:///run/redis.sock?db=2&password=x"),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE", "rediss://host/0?ssl_cert_reqs=none"),
        ("rediss://host/0?ssl_cert_reqs=CERT_REQUIRED", "rediss://host/0?ssl_cert_reqs=required"),
        ("rediss://host/0?ssl_cert_reqs=CERT_OPTIONAL", "rediss://host/0?ssl_cert_reqs=optional"),
        ("rediss://host/0?ssl_cert_reqs=none", "rediss://host/0?ssl_cert_reqs=none"),
        ("redis://first/0;redis://second/0", "redis://first/0"),
        (" redis://first/0 ; redis://second/0", "redis://first/0"),
    ],
)
def test_every_spelling_of_a_redis_server_is_understood(given_url, url):
    """As the setting and as the broker alike, and redis-py can use what comes out."""
    assert results_url(given_url, None) == url
    assert results_url(None, given_url) == url
    assert repr(RedisWire(url=url, timeout_s=1.0)) == "<RedisWire closed>"


def test_the_setting_wins_over_the_broker():
    assert results_url("redis://results/0", "redis://broker/0") == "redis://results/0"


@pytest.mark.parametrize(
    "broker", [None, "", "amqp://guest:secret@host//", "sentinel://host:26379", "memory://", "host"]
)
def test_a_broker_that_is_no_redis_asks_for_the_setting(broker):
    with pytest.raises(ConfigurationError, match="set LEGIT_RESULTS_URL") as caught:
        results_url(None, broker)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["sentinel://host:26379", "host:6379", "http://:secret@host/0", "redis:/host"])
def test_a_setting_that_is_no_redis_is_named(value):
    with pytest.raises(ConfigurationError, match="LEGIT_RESULTS_URL") as caught:
        results_url(value, "redis://broker/0")
    assert "secret" not in str(caught.value)


hosts = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)
passwords = st.from_regex(r"[A-Za-z0-9%._~-]{1,12}", fullmatch=True)


@given(st.sampled_from(["redis", "rediss"]), hosts, st.integers(1, 65535), st.integers(0, 15), passwords)
def test_a_plain_url_is_left_as_it_is(scheme, host, port, db, password):
    url = f"{scheme}://me:{password}@{host}:{port}/{db}"
    assert results_url(url, None) == url


@given(st.text(max_size=60), st.one_of(st.none(), st.text(max_size=60)))
def test_any_text_gives_a_url_of_a_known_scheme_or_a_clear_error(value, broker):
    try:
        outcome = results_url(value, broker)
    except ConfigurationError as error:
        outcome = str(error)
    assert outcome.startswith(("redis://", "rediss://", "unix://")) or "LEGIT_RESULTS_URL" in outcome
