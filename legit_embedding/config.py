"""Every setting, read from the environment once, into one frozen object.

Each field is at the same time the environment variable (`LEGIT_` and its name in capitals), its type, its default, its
unit and its documentation; `legit-embedding config` prints them all.
"""

import difflib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from legit_embedding.errors import ConfigurationError

PREFIX = "LEGIT_"
SENTRY_VARIABLE = "SENTRY_DSN"
"""Without our prefix: what Sentry's own tools call it."""

BROKER_VARIABLE = "CELERY_BROKER_URL"
"""Celery's own, which wins over the setting of ours."""

MIB = 1024 * 1024
GIB = 1024 * MIB

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


def _setting(default: Any, doc: str, *, unit: str = "", **constraints: Any) -> Any:
    return Field(default, description=doc, json_schema_extra={"unit": unit}, **constraints)


class Settings(BaseSettings):
    """The worker's settings, frozen.

    Raises:
        pydantic.ValidationError: from the constructor; `load_settings` turns it into a `ConfigurationError`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    # who this worker is
    service: str = _setting("legit-embedding", "first half of the worker's identity, <service>@<host>", min_length=1)
    worker_id: str | None = _setting(
        None, "the whole identity, for hosts whose name changes; never a PID", min_length=1
    )

    # the two servers
    broker_url: str = _setting(
        "redis://127.0.0.1:6379/0", "Celery's broker; CELERY_BROKER_URL and -b win over it, as everywhere", unit="URL"
    )
    results_url: str | None = _setting(
        None, "server of the result streams; unset: the broker, where that is Redis", unit="URL"
    )
    visibility_timeout_s: int = _setting(
        3600, "Redis brokers: when an unacknowledged message goes back to its queue", unit="s", gt=0
    )
    broker_transport: Literal["legit", "kombu"] = _setting(
        "legit", "how the broker is talked to: many messages at once, or as kombu does, one message at a time"
    )
    lease_s: float = _setting(
        30.0, "Redis brokers, transport 'legit': how long after its death a worker's messages are back in their queues",
        unit="s", ge=5,
    )  # fmt: skip
    concurrency: int = _setting(
        512, "tasks in flight; batching and distant servers need them, so this is not the CPU count", unit="tasks", gt=0
    )

    # the wire
    contract: Path | None = _setting(None, "rename tables for task, queue and field names", unit="path")
    max_items: int = _setting(10_000, "items a task may have", unit="items", gt=0)

    # what a message may make the worker read: nothing, until this says so
    allowed_roots: CommaSeparated = _setting(
        (), "folders from which `path` items are read; none: refused", unit="paths"
    )
    allowed_hosts: CommaSeparated = _setting(
        (), "hosts from which `url` items are fetched (host, host:port, *.domain); none: refused", unit="hosts"
    )
    shm_root: Path | None = _setting(None, "folder from which `shm` items are read; none: refused", unit="path")

    # sources
    max_source_bytes: ByteSize = _setting(
        ByteSize(16 * MIB),
        "largest encoded file an item may be; a URL reserves as much of the budget",
        unit="bytes",
        gt=0,
    )
    max_pixels: int = _setting(100_000_000, "largest decoded image", unit="pixels", gt=0)
    fetch_concurrency: int = _setting(64, "fetches under way at once", unit="fetches", gt=0)
    fetch_timeout_s: float = _setting(20.0, "one attempt at a fetch, connection included", unit="s", gt=0)
    retries: int = _setting(
        3, "further attempts after a transient error, before it becomes an entry", unit="tries", ge=0
    )
    retry_base_s: float = _setting(0.5, "first pause between attempts; doubles, with jitter", unit="s", gt=0)
    retry_max_s: float = _setting(10.0, "longest pause between attempts", unit="s", gt=0)
    prepare_threads: int | None = _setting(
        None, "threads that decode and tokenise; unset: the CPU count", unit="threads", gt=0
    )
    sync_threads: int = _setting(16, "threads for plain `def` tasks", unit="threads", gt=0)
    drain_timeout_s: float | None = _setting(
        None, "how long TERM lets running tasks finish before their messages go back; unset: without end. Set it "
        "25 s below the time after which a supervisor kills", unit="s", ge=0,
    )  # fmt: skip

    # memory
    budget_bytes: ByteSize = _setting(
        ByteSize(1 * GIB), "bytes fetched, prepared and not yet published, over all tasks; when used up, intake stops",
        unit="bytes", gt=0,
    )  # fmt: skip
    pending_results_bytes: ByteSize = _setting(
        ByteSize(64 * MIB), "results not yet confirmed by their server; when full, inference and fetching stop",
        unit="bytes", gt=0,
    )  # fmt: skip
    task_window: int = _setting(512, "items of one task under way at once", unit="items", gt=0)

    # models
    models: Path | None = _setting(None, "models.toml; unset: the built-in defaults", unit="path")
    model_memory_bytes: ByteSize | None = _setting(
        None, "weights kept on one device; above it the least recently used idle model goes", unit="bytes", gt=0
    )
    model_idle_s: float | None = _setting(
        None, "a model unused for this long is unloaded; unset: never", unit="s", gt=0
    )
    model_failure_s: float = _setting(
        30.0,
        "how long a failed load is remembered before the next try, and so how long a task waits for its model, if not "
        "for LEGIT_RETRY_MAX_S",
        unit="s",
        ge=0,
    )
    preload: CommaSeparated = _setting(
        (), "models loaded before the first task is taken (names, or 'defaults')", unit="models"
    )
    warm_up: bool = _setting(True, "run one small batch through a model right after its load")

    # results
    results_stream: str = _setting("embeddings:results", "the global stream", min_length=1)
    results_maxlen: int | None = _setting(
        None, "approximate trimming of result streams; it can delete unread results", unit="entries", gt=0
    )
    max_deliveries: int | None = _setting(
        20,
        "a task delivered more often than this, because its workers died, is given up: it goes to the dead letters; "
        "0 or empty: never. Only Redis with transport 'legit', and quorum queues, count",
        unit="deliveries",
        ge=0,
    )
    dead_letter_stream: str = _setting("embeddings:dead", "stream of the tasks given up", min_length=1)
    reply_to_routing: Literal["on", "off"] = _setting(
        "on", "off: everything to the global stream; a switch set at run time is kept on the server and wins"
    )
    reply_to_allow: CommaSeparated = _setting(
        ("*",), "glob patterns of streams a task may name in reply_to", unit="patterns"
    )
    publish_connections: int = _setting(3, "connections that write results", unit="connections", ge=1, le=16)
    publish_max_entries: int = _setting(256, "entries one pipeline carries at most", unit="entries", gt=0)
    publish_timeout_s: float = _setting(
        15.0, "reply to one pipeline; after it the outcome is unknown and retried", unit="s", gt=0
    )

    # telemetry
    metrics_port: int | None = _setting(None, "Prometheus metrics over HTTP; unset: off", unit="port", ge=0, le=65535)
    metrics_host: str = _setting("127.0.0.1", "address the metrics are served on")
    stats_interval_s: float = _setting(5.0, "how often the figures are written to the result server", unit="s", gt=0)
    sentry_dsn: SecretStr | None = Field(
        None,
        description="errors are reported there; unset: off",
        validation_alias=SENTRY_VARIABLE,
        json_schema_extra={"unit": "URL"},
    )

    @field_validator("allowed_roots", "allowed_hosts", "preload", "reply_to_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in (p.strip() for p in value.split(",")) if part)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object, info: ValidationInfo) -> object:
        optional = cls.model_fields[info.field_name or ""].default is None
        return None if optional and value == "" else value

    @property
    def identity(self) -> str:
        """This worker's one name: in Celery's node name, results, logs, metrics and Sentry."""
        return self.worker_id or f"{self.service}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """A result stream; keeps the old worker's name and fields.

    `maxlen` (entries) None keeps everything: trimming can delete unread results.
    """

    stream: str = "embeddings:results"
    maxlen: int | None = None
    approximate: bool = True
    encoding: str = "base64_fp32"


@dataclass(frozen=True, slots=True)
class SettingLine:
    """One setting as `legit-embedding config` shows it.

    `origin` is `environment`, `default`, or the variable of Celery's whose value wins and is shown.
    """

    variable: str
    value: str
    unit: str
    origin: str
    doc: str


def load_settings(**overrides: Any) -> Settings:
    """Reads the environment.

    Raises:
        ConfigurationError: a value cannot be used; names the variable and says what is wrong with it.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [f"{variable_name(str(e['loc'][0]))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise ConfigurationError("; ".join(lines)) from error


@cache
def settings() -> Settings:
    """The process's settings: the environment is read at the first call, and never again."""
    return load_settings()


def variable_name(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return SENTRY_VARIABLE if field.upper() == SENTRY_VARIABLE else f"{PREFIX}{field.upper()}"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each `LEGIT_` variable that no setting reads: most likely a misspelt one."""
    known = [variable_name(field) for field in Settings.model_fields]
    lines = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            lines.append(f"{name} is no setting" + (f"; did you mean {close[0]}?" if close else ""))
    return lines


def describe(values: Settings, environ: Mapping[str, str] = os.environ) -> list[SettingLine]:
    """Every setting with its value, unit and origin, in the order in which they are declared."""
    present = {name.upper() for name in environ}
    lines = []
    for name, info in Settings.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        variable = variable_name(name)
        value, origin = getattr(values, name), "environment" if variable in present else "default"
        if name == "broker_url" and environ.get(BROKER_VARIABLE):
            value, origin = environ[BROKER_VARIABLE], BROKER_VARIABLE
        lines.append(
            SettingLine(
                variable=variable,
                value=_shown(value),
                unit=str(extra.get("unit", "")),
                origin=origin,
                doc=info.description or "",
            )
        )
    return lines


def _shown(value: object) -> str:
    if value is None:
        return "(unset)"
    if isinstance(value, SecretStr):
        return "(set, hidden)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, str) and "://" in value:
        return hide_password(value)
    return str(value)


def hide_password(urls: str) -> str:
    """`urls`, one or several joined by `;`, with each password replaced by `***`: fit for a log.

    A password may hold what ought to be escaped in it, `/`, `?` and `@` too. Rather too much is hidden than too little.
    """
    return ";".join(_without_password(url) for url in _NEXT_URL.split(urls))


_NEXT_URL = re.compile(r";(?=\s*[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_PASSWORD_OPTION = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    shown = _PASSWORD_OPTION.sub(r"\1***", rest)
    credentials, at, host = shown.rpartition("@")
    if not at and "@" in rest:  # what looked like an option may be a part of the credentials
        return f"{scheme}{separator}***"
    if not at or ":" not in credentials:
        return f"{scheme}{separator}{shown}"
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}:***@{host}"
