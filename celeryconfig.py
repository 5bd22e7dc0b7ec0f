"""Celery's settings for production, each with its reason.

What a site decides comes from `LEGIT_*` (see `legit-embedding config`). Celery's own ways (`CELERY_BROKER_URL`, `-b`,
`-c`, `-Q`, `-- worker.setting=value`) win over this file.
"""

from kombu import Exchange, Queue

from legit_embedding.config import settings
from legit_embedding.contract import Names

_settings = settings()
_names = Names.load(_settings.contract)

# -- what this worker consumes -----------------------------------------------------------------------------------------

imports = ("tasks.preparation", "tasks.embedding", "tasks.text_embedding")

# A queue's exchange and routing key are its own name: what Celery makes of a queue that a producer merely names, so
# that bindings written by producers and by this worker are the same.
task_queues = tuple(Queue(name, Exchange(name), routing_key=name) for name in _names.queues.values())
task_default_queue = next(iter(_names.queues.values()))
task_routes = {
    deployed: {"queue": _names.queue_of(canonical)}
    for canonical, deployed_names in _names.tasks.items()
    for deployed in deployed_names
}

# JSON alone: a pickled message could run code.
accept_content = ("json",)
task_serializer = "json"
result_serializer = "json"

# -- the pool ----------------------------------------------------------------------------------------------------------

worker_pool = "legit_async"
legit_async_lifespan = "legit_embedding.runtime:lifespan"
legit_async_threads = _settings.sync_threads

# Batching needs tasks in flight: Celery's default, the CPU count, would make batches of two.
worker_concurrency = _settings.concurrency

# As many messages as tasks in flight and no more: what waits here cannot be taken by another worker.
worker_prefetch_multiplier = 1

# After a lost connection Celery would lower the prefetch count and raise it task by task: small batches for minutes.
worker_enable_prefetch_count_reduction = False

# ETA tasks raise the prefetch count one by one without bound; this many may wait here.
worker_eta_task_limit = 10_000

# -- nothing is lost ---------------------------------------------------------------------------------------------------

# The ack follows the results: a task is acknowledged after Redis has confirmed every one of its entries.
task_acks_late = True
task_reject_on_worker_lost = True

# The broker hands out again what was unacknowledged when a connection broke; the copy still running here would be a
# second one, so it is cancelled. Not where our own transport talks to Redis: there it keeps its message, and the
# application turns this off.
worker_cancel_long_running_tasks_on_connection_loss = True

# Results travel on streams. A producer that wants Celery's own result asks for it with ignore_result=False.
task_ignore_result = True
task_store_errors_even_if_ignored = False

# No time limit: 10,000 images on a laptop take half an hour.
task_time_limit = None
task_soft_time_limit = None

# -- the broker --------------------------------------------------------------------------------------------------------

broker_url = _settings.broker_url
broker_connection_retry = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # a worker that gives up at night is found in the morning

# Read by Redis brokers; py-amqp takes and ignores them.
broker_transport_options = {
    # When any unacknowledged message goes back to its queue, those of other applications on this broker too.
    "visibility_timeout": _settings.visibility_timeout_s,
    # How long a worker lives that gives no sign of life; its messages go back then, and those of no other worker.
    "lease_s": _settings.lease_s,
    # Look for them every second, not about every hundred: they are back within seconds of that time-out.
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # Above kombu's own BRPOP time-out (10 s), so that an idle wait is not taken for a dead server.
    "socket_timeout": 30,
    "socket_connect_timeout": 10,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

# -- stopping ----------------------------------------------------------------------------------------------------------

# A warm shutdown (TERM) lets running tasks finish for so long, returns the rest, and exits with 0.
legit_async_drain_timeout_s = _settings.drain_timeout_s

# A cold shutdown (QUIT) first gives running tasks this many seconds.
worker_soft_shutdown_timeout = 20.0
worker_enable_soft_shutdown_on_idle = False  # with nothing running there is nothing to wait for

# -- logs and events ---------------------------------------------------------------------------------------------------

worker_hijack_root_logger = True
worker_redirect_stdouts = False  # libraries that print write to the console, not into the log as warnings
worker_send_task_events = False  # -E turns them on
