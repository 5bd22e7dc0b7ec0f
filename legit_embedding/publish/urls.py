"""Where the result streams are."""

from legit_embedding.config import hide_password
from legit_embedding.errors import ConfigurationError

SCHEMES = ("redis", "rediss", "unix")
CELERY_SCHEMES = {"redis+socket": "unix", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}
"""Spellings of kombu's and others', and what redis-py calls them."""

CELERY_OPTIONS = {
    "virtual_host=": "db=",
    "ssl_cert_reqs=CERT_REQUIRED": "ssl_cert_reqs=required",
    "ssl_cert_reqs=CERT_OPTIONAL": "ssl_cert_reqs=optional",
    "ssl_cert_reqs=CERT_NONE": "ssl_cert_reqs=none",
}
"""Beginnings of options in a URL's query, and what redis-py calls them."""


def results_url(settings_value: str | None, broker_url: str | None) -> str:
    """The result server's URL as redis-py takes it: LEGIT_RESULTS_URL, else the broker's where that is Redis.

    Of several URLs joined by `;`, as Celery takes them for failover, it is the first.

    Raises:
        ConfigurationError: neither is a Redis server; says what to set.
    """
    if settings_value:
        return _normalise(settings_value, "LEGIT_RESULTS_URL")
    first = (broker_url or "").split(";", 1)[0].strip()
    scheme = first.partition("://")[0]
    if scheme not in SCHEMES and scheme not in CELERY_SCHEMES:
        raise ConfigurationError(
            f"the broker ({hide_password(first) or 'none'}) is no single Redis server, so results have nowhere to go: "
            "set LEGIT_RESULTS_URL, for example to redis://host:6379/0"
        )
    return _normalise(first, "the broker's URL")


def _normalise(value: str, origin: str) -> str:
    first = value.split(";", 1)[0].strip()
    scheme, separator, rest = first.partition("://")
    scheme = CELERY_SCHEMES.get(scheme, scheme)
    if not separator or scheme not in SCHEMES:
        raise ConfigurationError(
            f"{origin} ({hide_password(first)}) must be a redis://, rediss:// or unix:// URL of one server; "
            "for Sentinel or a cluster name the address of the primary"
        )
    address, _, query = rest.partition("?")
    options = [_option(option) for option in query.split("&") if option]
    return f"{scheme}://{address}" + (f"?{'&'.join(options)}" if options else "")


def _option(option: str) -> str:
    for theirs, ours in CELERY_OPTIONS.items():
        if option.startswith(theirs):
            return ours + option.removeprefix(theirs)
    return option
