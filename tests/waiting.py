"""What tests with real servers and workers wait by, and how they let go of a client."""

import time

PATIENCE_S = 30.0
LOOK_S = 0.02


def until(condition, what="it", *, timeout_s=PATIENCE_S, more=lambda: ""):
    """Returns once `condition` holds; fails loudly, with the end of `more()`, where it does not within the bound."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"still waiting for {what}\n{more()[-3000:]}"
        time.sleep(LOOK_S)


def until_free(threads):
    """A call's result is there a moment before its thread is free."""
    until(lambda: ", 0 calls" in repr(threads), "the threads")


def close_client(app):
    """Closes a producer that waited for results.

    Those that are collected later would unsubscribe at a server that is gone by then.
    """
    app.backend.remove_pending_result = lambda result: result
    app.backend.result_consumer.stop()
    app.backend.client.close()
    app.close()
