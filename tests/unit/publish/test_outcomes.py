"""What becomes of an entry, by what the server said of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions
from redis._parsers.base import BaseParser

from legit_embedding.publish.outcomes import Refused, Scope, Trouble, classify, error_code

SERVER_WORDS = [
    # The server's own words, and what they mean for an entry on a `reply_to` stream.
    ("WRONGTYPE Operation against a key holding the wrong kind of value", Refused("wrong_type")),
    (
        "ERR The stream has exhausted the last possible ID, unable to add more items",
        Refused("error"),
    ),
    ("ERR The ID specified in XADD is equal or smaller than the target stream top item", Refused("error")),
    ("NOPERM User worker has no permissions to access the 'other' key", Refused("no_permission")),
    ("MOVED 3999 127.0.0.1:6381", Refused("other_node")),
    ("ASK 3999 127.0.0.1:6381", Refused("other_node")),
    ("CROSSSLOT Keys in request don't hash to the same slot", Refused("other_node")),
    ("OOM command not allowed when used memory > 'maxmemory'.", Trouble("out_of_memory", Scope.WRITES)),
    ("MISCONF Errors writing to the AOF file: No space left on device", Trouble("misconf", Scope.WRITES)),
    ("NOREPLICAS Not enough good replicas to write.", Trouble("noreplicas", Scope.WRITES)),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL.", Trouble("busy", Scope.WRITES)),
    ("UNKILLABLE Sorry the script already executed write commands", Trouble("unkillable", Scope.WRITES)),
    ("READONLY You can't write against a read only replica.", Trouble("read_only", Scope.WRITES, reconnect=True)),
    ("CLUSTERDOWN Hash slot not served", Trouble("cluster_down", Scope.WRITES)),
    ("MASTERDOWN Link with MASTER is down", Trouble("cluster_down", Scope.WRITES)),
    ("TRYAGAIN Multiple keys request during rehashing of slot", Trouble("cluster_down", Scope.WRITES)),
    ("LOADING Redis is loading the dataset in memory", Trouble("loading", Scope.LINE)),
    ("NOAUTH Authentication required.", Trouble("authentication", Scope.LINE, reconnect=True)),
    ("WRONGPASS invalid username-password pair", Trouble("authentication", Scope.LINE, reconnect=True)),
    ("ERR max number of clients reached", Trouble("unreachable", Scope.LINE)),
]

LINE_ERRORS = [
    (exceptions.TimeoutError("Timeout reading"), Trouble("timeout", Scope.LINE, reconnect=True)),
    (TimeoutError(), Trouble("timeout", Scope.LINE, reconnect=True)),
    (exceptions.ConnectionError("Connection closed by server."), Trouble("unreachable", Scope.LINE)),
    (ConnectionRefusedError(111, "Connection refused"), Trouble("unreachable", Scope.LINE)),
    (ConnectionResetError(), Trouble("unreachable", Scope.LINE)),
    (OSError("no route to host"), Trouble("unreachable", Scope.LINE)),
    (exceptions.AuthorizationError("no"), Trouble("authentication", Scope.LINE, reconnect=True)),
    (ValueError("a bug"), Trouble("internal", Scope.LINE, reconnect=True)),
]


@pytest.mark.parametrize(("words", "verdict"), SERVER_WORDS, ids=[words.split(".")[0] for words, _ in SERVER_WORDS])
def test_the_servers_words_decide(words, verdict):
    assert classify(BaseParser.parse_error(words), on_global_stream=False) == verdict


@pytest.mark.parametrize(("error", "verdict"), LINE_ERRORS, ids=[repr(error) for error, _ in LINE_ERRORS])
def test_a_line_that_fails_is_waited_out(error, verdict):
    assert classify(error, on_global_stream=False) == verdict


@pytest.mark.parametrize(("words", "verdict"), SERVER_WORDS, ids=[words.split(".")[0] for words, _ in SERVER_WORDS])
def test_on_the_global_stream_a_refusal_is_waited_out_and_the_rest_stays_the_same(words, verdict):
    """There is no further stream to go to, and nothing is dropped."""
    expected = Trouble(verdict.kind, Scope.GLOBAL_STREAM) if isinstance(verdict, Refused) else verdict
    assert classify(BaseParser.parse_error(words), on_global_stream=True) == expected


def raisable():
    known = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    texts = st.one_of(st.text(), st.from_regex(r"[A-Z]{2,12} [a-z ]{0,20}", fullmatch=True))
    made = [kind for kind in known if kind.__init__ in {Exception.__init__, exceptions.RedisError.__init__}]
    return st.builds(lambda kind, text: kind(text), st.sampled_from([*made, OSError, TimeoutError, KeyError]), texts)


@given(raisable(), st.booleans())
def test_every_error_has_a_verdict_and_nothing_is_refused_on_the_global_stream(error, on_global_stream):
    verdict = classify(error, on_global_stream=on_global_stream)
    assert verdict.kind == verdict.kind.lower()
    assert isinstance(verdict, Trouble) or not on_global_stream


@given(st.text())
def test_a_plain_error_is_never_the_servers_own_condition(text):
    """An ERR answers one command: it neither stops all others nor counts as a condition of the server."""
    error = BaseParser.parse_error(f"ERR {text.lower()}")
    if type(error) is exceptions.ResponseError:
        assert classify(error, on_global_stream=False) == Refused("error")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("MISCONF Errors writing", "MISCONF"),
        ("UNKNOWN: what", "UNKNOWN"),
        ("The ID specified", None),
        ("A stream", None),
        ("", None),
        ("42 is no code", None),
    ],
)
def test_a_code_stands_at_the_front_in_capitals(text, code):
    assert error_code(exceptions.ResponseError(text)) == code
