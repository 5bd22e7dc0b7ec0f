"""Routing: a message names its stream, and never a key of somebody else."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from legit_embedding.config import load_settings
from legit_embedding.publish.routing import MAX_NAME_BYTES, PRIORITY_SEPARATOR, Route, RoutingRules, refusal, route

RULES = RoutingRules(global_stream="results", queues=frozenset({"work", "celery"}))

FOREIGN = [
    "work",
    "celery",
    "unacked",
    "unacked_index",
    "unacked_mutex",
    "unacked_leases",
    "unacked_deliveries",
    "unacked_lease.8f1c",
    "celeryev",
    "_kombu.binding.work",
    "celeryev.8f1c",
    "celery-task-meta-8f1c",
    "celery-taskset-meta-8f1c",
    "celery@host.celery.pidbox",
    "reply.celery.pidbox",
    "legit:reply_to_routing",
    "legit:stats",
    "embeddings:dead",
    f"work{PRIORITY_SEPARATOR}3",
]


@pytest.mark.parametrize("reply_to", [None, "", "results"])
def test_without_a_name_of_its_own_a_task_gets_the_global_stream(reply_to):
    assert route(reply_to, rules=RULES, enabled=True) == Route("results")


def test_a_name_that_may_be_used_is_used():
    assert route("answers:42", rules=RULES, enabled=True) == Route("answers:42")


@pytest.mark.parametrize("reply_to", ["answers:42", "unacked", "x" * 1000])
def test_with_routing_off_every_name_gets_the_global_stream_and_none_counts_as_refused(reply_to):
    assert route(reply_to, rules=RULES, enabled=False) == Route("results")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_key_of_the_broker_or_of_the_worker_is_refused(name):
    assert route(name, rules=RULES, enabled=True) == Route("results", rejected=name)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_key_is_refused_with_the_brokers_prefix_and_without(name):
    rules = RoutingRules(global_stream="results", queues=RULES.queues, key_prefix="site:")
    assert refusal(f"site:{name}", rules=rules) is not None
    assert refusal(name, rules=rules) is not None


@pytest.mark.parametrize("name", ["answers\n", "answers\x00", "\x06\x16", "half\ud800"])
def test_a_name_with_control_characters_is_refused(name):
    assert "control characters" in refusal(name, rules=RULES)


@pytest.mark.parametrize(
    ("name", "fits"), [("x" * 512, True), ("x" * 513, False), ("é" * 256, True), ("é" * 257, False)]
)
def test_a_name_may_have_512_bytes(name, fits):
    assert (refusal(name, rules=RULES) is None) is fits


def test_a_name_that_is_far_too_long_is_noted_shortened():
    assert route("x" * 5000, rules=RULES, enabled=True) == Route("results", rejected="x" * MAX_NAME_BYTES)


def test_a_name_must_match_a_pattern_of_the_allow_list_and_case_matters():
    rules = RoutingRules(global_stream="results", allow=("answers:*", "Shop-?"))
    assert [refusal(name, rules=rules) is None for name in ("answers:1", "Shop-1", "shop-1", "Answers:1", "x")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert "LEGIT_REPLY_TO_ALLOW" in refusal("x", rules=rules)


def test_the_global_stream_needs_no_pattern():
    rules = RoutingRules(global_stream="results", allow=("answers:*",))
    assert route("results", rules=rules, enabled=True) == Route("results")


def test_an_allow_list_does_not_open_the_brokers_keys():
    rules = RoutingRules(global_stream="results", allow=("unacked", "*"))
    assert refusal("unacked", rules=rules) is not None


def test_the_rules_come_from_the_settings():
    settings = load_settings(results_stream="r", dead_letter_stream="d", reply_to_allow="a:*,b")
    assert RoutingRules.create(settings, queues=["q"], key_prefix="p:") == RoutingRules(
        global_stream="r", dead_letter_stream="d", allow=("a:*", "b"), queues=frozenset({"q"}), key_prefix="p:"
    )


@given(st.one_of(st.none(), st.text(), st.sampled_from(FOREIGN)), st.booleans())
def test_a_route_is_the_name_itself_or_the_global_stream(reply_to, enabled):
    """Whatever the message says: no other stream is ever written to, and what was refused is told."""
    chosen = route(reply_to, rules=RULES, enabled=enabled)
    if chosen.rejected is None:
        assert chosen.stream in {"results", reply_to}
    else:
        assert chosen == Route("results", rejected=reply_to[:MAX_NAME_BYTES])
        assert enabled


@given(st.text(), st.sampled_from(FOREIGN))
def test_no_prefix_opens_a_foreign_key(prefix, name):
    rules = RoutingRules(global_stream="results", queues=RULES.queues, key_prefix=prefix)
    assert refusal(prefix + name, rules=rules) is not None


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=60))
def test_any_printable_name_that_belongs_to_nobody_is_allowed(name):
    prefixes = ("_kombu.", "celeryev.", "celery-task", "legit:", "unacked_lease.")
    assume(not (name in FOREIGN or name.startswith(prefixes) or "pidbox" in name))
    assert refusal(name, rules=RULES) is None
