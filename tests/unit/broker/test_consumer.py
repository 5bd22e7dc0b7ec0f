"""The flow of a message, between a loop that turns when it is told to and a server that says what it is told to."""

import contextlib
import itertools
import json
import select
import socket
import threading
from collections import deque
from types import SimpleNamespace

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import virtual
from kombu.utils.scheduling import cycle_by_name
from redis import exceptions

from legit_embedding.broker import connection as connection_module
from legit_embedding.broker import consumer as module
from legit_embedding.broker import intake as intake_module
from legit_embedding.broker.consumer import SLICE_S, Consumer, Options
from legit_embedding.broker.holdings import Holdings, Taken
from legit_embedding.broker.names import Keys
from legit_embedding.broker.patience import LONGEST_SPREAD_S, PATIENCE
from legit_embedding.broker.scripts import GIVE_BACK, OPEN, TAKE
from legit_embedding.broker.settling import ACKS_A_COMMAND, BACK, FRONT, GIVE_BACK_A_COMMAND, REFUSED_PAUSE_S, Return
from legit_embedding.broker.takes import SAFETY_PAUSE_S

SCRIPTS = {script.sha: script for script in (TAKE, GIVE_BACK, OPEN)}
PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nq\r\n"
NO = hiredis.ReplyError
BROKEN = b"{no json"


def encoded(reply):
    """A reply as a server sends it."""
    if reply is None:
        return b"_\r\n"
    if isinstance(reply, Exception):
        return f"-{reply}\r\n".encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))
    data = reply if isinstance(reply, bytes) else reply.encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def text_of(number):
    return json.dumps({"body": number, "headers": {}, "properties": {"delivery_tag": "the producers"}}).encode()


class Server:
    """The other end: answers as soon as it is sent something, unless it is to wait; `refuses` by a command's name."""

    def __init__(self, own):
        self._socket = own
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()
        self.heard = []
        self.unanswered = deque()
        self.waits = False
        self.refuses = {}
        self.lists = deque()
        """Of the only list: what takes find, in order. A message's place is that of its list among the take's."""
        self.leased = True
        self.counts = None
        self.left_behind = 0
        self.lines = 100

    def listen(self):
        try:
            while data := self._socket.recv(1 << 20):
                self._reader.feed(data)
        except (BlockingIOError, OSError):
            pass
        for command in iter(self._reader.gets, False):
            words = [word.decode() for word in command]
            if words[0] in {"EVALSHA", "EVAL"}:
                words = [SCRIPTS[words[1]].name, *words[3:]]
            self.heard.append(words)
            self.unanswered.append(words)
        if not self.waits:
            self.answer()

    def answer(self, most=1 << 20):
        for _ in range(min(most, len(self.unanswered))):
            words = self.unanswered.popleft()
            self._socket.sendall(encoded(self._reply_to(words)))

    def push(self):
        self._socket.sendall(PUSH)

    def hang_up(self):
        self.unanswered.clear()
        self._socket.close()

    def _reply_to(self, words):
        for name, error in self.refuses.items():
            if " ".join(words).startswith(name):
                return error
        if words[0] == TAKE.name:
            return self._take(words)
        replies = {"EXISTS": len(self.lists), OPEN.name: 0, "HLEN": self.left_behind, "ZCARD": self.lines}
        return replies.get(words[0], 1)

    def _take(self, words):
        if not self.leased:
            return None
        found = []
        for _ in range(min(wanted(words), len(self.lists))):
            found += self.lists.popleft()
        if not found:
            return [[]]
        return [found] if self.counts is None else [found, self.counts[: len(found) // 2]]

    # -- what it was told

    def named(self, name):
        return [words[1:] for words in self.heard if words[0] == name]

    def forget(self):
        self.heard.clear()

    def asked_for(self):
        return [wanted(words) for words in self.heard if words[0] == TAKE.name]

    def given_back(self):
        """(tag, side, counted, text) of each message, in order."""
        found = []
        for words in self.named(GIVE_BACK.name):
            found += list(zip(*[iter(words[4:])] * 4, strict=True))
        return found

    def acknowledged(self):
        return [words[1:] for words in self.named("HDEL") if words[0] == "p:unacked"]


def number_of_queues(words):
    """That a take looks at: the first word after its keys."""
    return int(next(word for word in words if word.isdigit()))


def wanted(words):
    """How many messages a take asks for: after its keys and the number of its queues."""
    keys = next(i for i, word in enumerate(words) if word.isdigit())
    return int(words[keys + 1])


class Line:
    """Our end of the line: whatever is sent is heard before `send` returns; `signal` comes in the middle of it."""

    def __init__(self, own, server):
        self._socket, self._server = own, server
        self.signal = None

    def send(self, data):
        if self.signal is not None:
            handler, self.signal = self.signal, None
            handler()
        sent = self._socket.send(data)
        self._server.listen()
        return sent

    def __getattr__(self, name):
        return getattr(self._socket, name)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def monotonic(self):
        return self.now_s


class Hub:
    def __init__(self):
        self.readers = {}
        self.timers_s = []

    def add_reader(self, what, callback):
        self.readers[what if isinstance(what, int) else what.fileno()] = callback

    def remove(self, what):
        del self.readers[what if isinstance(what, int) else what.fileno()]

    def call_later(self, after_s, _):
        self.timers_s.append(after_s)

    def ready(self):
        return [self.readers[number] for number in select.select(list(self.readers), [], [], 0)[0]]


class Channel:
    do_restore = False

    def __init__(self, queues, prefetch, strategy="round_robin", steps=(0,)):
        self.queue_order_strategy = strategy
        self.priority_steps = list(steps)
        self.no_ack_queues = set()
        self.arriving = None
        self.qos = virtual.QoS(self, prefetch)
        self.delivered = []
        self.on_message = lambda _: None
        self.connection = SimpleNamespace(_deliver=self._deliver)
        self.consume(*queues)

    def consume(self, *queues):
        self._active_queues = list(queues)
        self._queue_cycle = cycle_by_name(self.queue_order_strategy)(list(queues))

    @property
    def active_queues(self):
        return list(self._active_queues)

    def _q_for_pri(self, queue, step):
        return f"{queue}-{step}" if step else queue

    def _deliver(self, payload, queue):
        assert payload["properties"] is not None  # as kombu's: what is no message ends here
        taken = self.arriving
        self.delivered.append((taken.tag, queue, payload["body"]))
        if queue not in self.no_ack_queues:
            self.qos.append(object(), taken.tag)
        self.on_message(taken)

    def bodies(self):
        return [body for _, _, body in self.delivered]

    def tags(self):
        return [tag for tag, _, _ in self.delivered]


class Message:
    """Whose end can be seen."""


class Rig:
    """A consumer, its loop and its server."""

    def __init__(self, clock, *, queues=("q",), prefetch=0, holdings=None, pushes=True, channel=None, **options):
        self.clock = clock
        ours, theirs = socket.socketpair()
        self.server, self.hub = Server(theirs), Hub()
        self.line = Line(ours, self.server)
        self.channel = Channel(queues, prefetch, **(channel or {}))
        self.holdings = Holdings() if holdings is None else holdings
        self.keys = Keys.create(prefix="p:", unacked="unacked", index="index", mutex="mutex")
        self.options = Options(**{"pushes": pushes, "timeout_s": 5.0, **options})
        self.consumer = None
        self.left = []

    def open(self):
        self.consumer = Consumer(
            self.channel,
            self.hub,
            connection=SimpleNamespace(_sock=self.line, disconnect=self.line.close),
            keys=self.keys,
            holdings=self.holdings,
            options=self.options,
        )
        return self

    @property
    def owner(self):
        return self.keys.owner(self.consumer.line)

    def put(self, *texts, place=1):
        self.server.lists.extend([place, text] for text in texts)

    def turn(self, times=1):
        """As the loop's: ticks, then calls whoever has something to read."""
        for _ in range(times):
            self.consumer.tick()
            for callback in self.hub.ready():
                callback()

    def settle(self):
        """Turns until a turn changes nothing; the clock stands still."""
        before = None
        while before != (before := (len(self.server.heard), len(self.channel.delivered), len(self.hub.ready()))):
            self.turn()

    def receive(self, *numbers):
        """As many messages, delivered."""
        self.put(*map(text_of, numbers))
        self.settle()
        return self

    def ack(self, *tags):
        for tag in tags:
            self.channel.qos.ack(tag)
            self.consumer.ack(tag)

    def close(self):
        self.consumer.close(lambda: self.left.append(list(self.server.heard)))

    def clean_up(self):
        self.server.hang_up()
        if self.consumer is not None and self.hub.readers:
            self.close()
        self.line.close()


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(module, "time", own)
    monkeypatch.setattr(intake_module, "time", own)
    monkeypatch.setattr(connection_module, "time", own)
    return own


@pytest.fixture
def prepare(clock):
    """Makes rigs whose consumer has yet to be opened."""
    made = []

    def prepare(**options):
        made.append(Rig(clock, **options))
        return made[-1]

    yield prepare
    for rig in made:
        rig.clean_up()


@pytest.fixture
def make(prepare):
    """Makes rigs."""
    return lambda **options: prepare(**options).open()


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_new_line_asks_for_pushes_makes_its_scripts_known_and_gets_a_lease(make):
    rig = make(lease_s=12.5)
    assert rig.server.named("HELLO") == [["3"]]
    assert rig.server.named("CLIENT") == [["TRACKING", "ON", "OPTIN", "NOLOOP"], ["CACHING", "YES"]]
    assert len(rig.server.named("SCRIPT")) == 3
    opened = ["p:unacked", "p:index", "p:unacked_leases", rig.owner, rig.keys.owner(""), "p:unacked_deliveries"]
    assert rig.server.named(OPEN.name) == [[*opened, rig.consumer.line, "12.5", ""]]


@pytest.mark.parametrize("command", ["HELLO", "CLIENT", "CLIENT TRACKING ON OPTIN", "CLIENT CACHING"])
def test_a_server_that_cannot_tell_of_messages_is_asked_again_and_again(prepare, command, clock):
    rig = prepare()
    rig.server.refuses[command] = NO("ERR unknown command")
    rig.open().settle()
    assert rig.server.named("EXISTS") == []
    rig.put(text_of(1))
    clock.now_s += 0.1
    rig.settle()
    assert rig.channel.bodies() == [1]


@pytest.mark.parametrize("command", ["SCRIPT", OPEN.name])
def test_a_server_that_runs_no_scripts_is_told_of_at_once_and_nothing_stays_open(prepare, command):
    rig = prepare()
    rig.server.refuses[command] = NO("NOPERM no scripts")
    with pytest.raises(exceptions.ResponseError, match="NOPERM"):
        rig.open()
    assert rig.hub.readers == {}
    assert rig.line.fileno() == -1


@pytest.mark.parametrize("command", ["HELLO", "SCRIPT", OPEN.name])
def test_a_server_that_is_loading_is_one_to_connect_to_again(prepare, command):
    rig = prepare()
    rig.server.refuses[command] = NO("LOADING the dataset")
    with pytest.raises(exceptions.ConnectionError, match="LOADING"):
        rig.open()
    assert rig.line.fileno() == -1


def test_each_line_that_was_lost_is_settled_and_what_is_worked_on_is_kept(prepare):
    holdings = Holdings()
    for tag in ("first.1.1", "second.4.2"):
        holdings.hold(Taken(tag, "q", b"", 0))
    holdings.ack("second.4.2")
    holdings.lines_before += ["first", "second"]
    rig = prepare(holdings=holdings)
    rig.open()
    opened = rig.server.named(OPEN.name)
    assert [words[4] for words in opened] == [rig.keys.owner("first"), rig.keys.owner("second")]
    assert [words[8] for words in opened] == ["first", "second"]
    assert [sorted(words[9:]) for words in opened] == [["first.1.1", "second.4.2"]] * 2


# -- taking ------------------------------------------------------------------------------------------------------------


def test_takes_go_out_together_and_their_sum_is_the_room(make):
    rig = make(prefetch=10, take_messages=4)
    rig.server.waits = True
    rig.turn()
    assert rig.server.asked_for() == [4, 4, 2]
    rig.turn()
    assert rig.server.asked_for() == [4, 4, 2]


def test_without_a_prefetch_there_is_room_for_what_takes_in_flight_bring(make):
    rig = make(prefetch=0, take_messages=8, takes_in_flight=3)
    rig.server.waits = True
    rig.turn()
    assert rig.server.asked_for() == [8, 8, 8]


def test_a_take_names_the_lists_by_priority_and_then_by_queue(make):
    rig = make(queues=("a", "b"), channel={"steps": (0, 3), "strategy": "priority"}, prefetch=4, take_bytes=99)
    rig.turn()
    (words, *_) = rig.server.named(TAKE.name)
    fixed = ["p:unacked", "p:index", "p:unacked_leases", rig.owner, "p:unacked_deliveries"]
    lists = ["p:a", "p:b", "p:a-3", "p:b-3"]
    ends = [', "", "a"]', ', "", "b"]']
    assert words == [*fixed, *lists, "2", "4", "99", "0", rig.consumer.line, f"{rig.consumer.line}.1.", *ends]


def test_no_queue_no_take(make):
    rig = make(queues=())
    rig.turn()
    assert rig.server.asked_for() == []


def test_messages_are_delivered_in_order_each_with_a_tag_that_names_its_line_its_take_and_its_place(make):
    rig = make(prefetch=10, take_messages=2)
    rig.put(*map(text_of, range(3)))
    rig.settle()
    assert rig.channel.bodies() == [0, 1, 2]
    line = rig.consumer.line
    assert rig.channel.tags() == [f"{line}.1.1", f"{line}.1.2", f"{line}.2.1"]
    assert sorted(rig.holdings.living) == sorted(rig.channel.tags())
    assert rig.channel.arriving is None


def test_a_message_arrives_with_its_queue_and_how_often_it_was_given_back(make):
    rig = make(queues=("a", "b"), channel={"steps": (0, 3), "strategy": "priority"})
    arrived = []
    rig.channel.on_message = arrived.append
    rig.server.counts = [0, 2]
    rig.put(text_of(1), place=2)
    rig.put(text_of(2), place=3)  # the first queue's, of the lower priority
    rig.settle()
    assert [(taken.queue, taken.deliveries) for taken in arrived] == [("b", 0), ("a", 2)]


def test_a_message_whose_body_holds_kombus_mark_of_an_object_is_decoded_as_kombu_does_it(make):
    rig = make()
    rig.put(
        b'{"body": {"__type__": "datetime", "__value__": "2024-05-06T07:08:09"}, "properties": {"delivery_tag": "d"}}'
    )
    rig.settle()
    assert [body.isoformat() for body in rig.channel.bodies()] == ["2024-05-06T07:08:09"]


def test_the_next_takes_go_out_before_anything_is_delivered(make):
    rig = make(prefetch=20, take_messages=2, takes_in_flight=1)
    rig.put(*map(text_of, range(2)))
    under_way = []
    rig.channel.on_message = lambda _: under_way.append(len(rig.server.asked_for()))
    rig.turn()
    assert under_way == [2, 2]


def test_the_queue_that_was_served_last_is_asked_last(make):
    rig = make(queues=("a", "b", "c"), prefetch=1)
    rig.put(text_of(1), place=1)
    rig.turn()
    rig.ack(*rig.channel.tags())
    rig.clock.now_s += 1
    rig.server.forget()
    rig.turn()
    assert rig.server.named(TAKE.name)[0][5:8] == ["p:b", "p:c", "p:a"]


def test_messages_are_delivered_a_slice_at_a_time_and_the_loop_has_its_turn_in_between(make, clock):
    rig = make(prefetch=10)

    def work(_):
        clock.now_s += SLICE_S

    rig.channel.on_message = work
    rig.put(*map(text_of, range(5)))
    rig.turn()
    assert 0 < len(rig.channel.bodies()) < 5
    rig.settle()
    assert rig.channel.bodies() == [0, 1, 2, 3, 4]


def test_what_there_is_no_room_for_any_more_waits_until_there_is(make):
    rig = make(prefetch=4)
    rig.put(*map(text_of, range(4)))
    rig.server.waits = True
    rig.turn()
    rig.channel.qos.prefetch_count = 2
    rig.server.answer()
    rig.turn(3)
    assert rig.channel.bodies() == [0, 1]
    rig.ack(rig.channel.tags()[0])
    rig.turn(3)
    assert rig.channel.bodies() == [0, 1, 2]


def test_where_celery_takes_no_more_than_it_runs_one_message_is_asked_for_at_a_time(make):
    rig = make(prefetch=8)
    free = [True]
    rig.channel.qos.can_consume = lambda: free[0]
    rig.server.waits = True
    rig.turn(2)
    assert rig.server.asked_for() == [1]
    free[0] = False
    rig.put(text_of(1))
    rig.server.answer()
    rig.turn(3)
    assert rig.server.asked_for() == [1]
    assert rig.channel.bodies() == []
    free[0] = True
    rig.turn(2)
    assert rig.channel.bodies() == [1]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 12)),
        st.tuples(st.just("answer"), st.integers(1, 3)),
        st.tuples(st.just("ack"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.01, 2.0])),
        st.tuples(st.just("turn"), st.integers(1, 2)),
    ),
    max_size=30,
)


@given(prefetch=st.integers(1, 12), most=st.integers(1, 6), in_flight=st.integers(1, 3), steps=STEPS)
def test_the_prefetch_is_never_exceeded_and_every_message_comes_once_and_in_order(prefetch, most, in_flight, steps):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(module, "time", clock)
        patch.setattr(connection_module, "time", clock)
        patch.setattr(intake_module, "time", clock)
        rig = Rig(clock, prefetch=prefetch, take_messages=most, takes_in_flight=in_flight, timeout_s=1e9).open()
        rig.server.waits = True
        put, acknowledged = 0, 0

        def turn():
            rig.turn()
            under_way = sum(wanted(words) for words in rig.server.unanswered if words[0] == TAKE.name)
            unsettled = len(rig.holdings.living) - len(rig.holdings._acks)
            assert unsettled + len(rig.consumer._intake.inbox) + under_way <= prefetch

        for name, number in steps:
            if name == "put":
                rig.put(*map(text_of, range(put, put + number)))
                rig.server.push()
                put += number
            elif name == "answer":
                rig.server.answer(number)
            elif name == "ack":
                tags = rig.channel.tags()[acknowledged : acknowledged + number]
                acknowledged += len(tags)
                rig.ack(*tags)
            elif name == "wait":
                clock.now_s += number
            turn()
        rig.server.waits = False
        for _ in range(put + 5):  # at least one message a turn, each a safety pause later
            rig.server.answer()
            rig.ack(*rig.channel.tags()[acknowledged:])
            acknowledged = len(rig.channel.delivered)
            clock.now_s += SAFETY_PAUSE_S
            turn()
            turn()
        assert rig.channel.bodies() == list(range(put))
        rig.clean_up()


# -- empty queues ------------------------------------------------------------------------------------------------------


def test_with_all_queues_empty_nothing_is_sent_until_the_server_tells(make):
    rig = make(queues=("a", "b"), channel={"steps": (0, 3)})
    rig.settle()
    assert rig.server.named("EXISTS") == [["p:a", "p:b", "p:a-3", "p:b-3"]]
    rig.server.forget()
    rig.turn(5)
    assert rig.server.heard == []
    assert rig.hub.timers_s == [SAFETY_PAUSE_S]
    rig.put(text_of(1))
    rig.server.push()
    rig.settle()
    assert rig.channel.bodies() == [1]


def test_the_server_is_to_tell_of_the_lists_alone(make):
    """Each look is preceded by the wish to be told of the keys that it reads; of a take's there is none."""
    rig = make()
    rig.settle()
    rig.receive(1)
    rig.server.push()
    rig.settle()
    heard = [words[:3] for words in rig.server.heard]
    for before, words in itertools.pairwise(heard):
        assert (words[0] == "EXISTS") == (before == ["CLIENT", "CACHING", "YES"] and words[0] != "SCRIPT")
    assert [words[0] for words in heard].count("EXISTS") >= 2


def lose_for_long(rig, clock):
    """Told again and again of what others get."""
    rig.settle()
    for _ in range(PATIENCE + 100):
        rig.server.push()
        rig.settle()
        clock.now_s += LONGEST_SPREAD_S
        rig.settle()


@pytest.mark.parametrize("refused", [False, True])
def test_who_is_told_for_nothing_for_long_looks_a_little_later_and_takes_what_there_is(
    make, clock, monkeypatch, refused
):
    rig = make()
    if refused:
        rig.server.refuses["ZCARD"] = NO("NOPERM no zcard")
    lose_for_long(rig, clock)
    monkeypatch.setattr(rig.consumer._intake._takes.patience, "_draw", lambda: 0.5)
    rig.server.forget()
    rig.put(text_of(1))
    rig.server.push()
    rig.settle()
    assert rig.server.heard == []
    assert rig.hub.timers_s[-1] == pytest.approx(LONGEST_SPREAD_S / 2)
    clock.now_s += LONGEST_SPREAD_S / 2 + 1e-9
    rig.settle()
    heard = [words[0] for words in rig.server.heard if words[0] != "ZCARD"]
    assert heard[:3] == ["CLIENT", "EXISTS", TAKE.name]
    assert rig.channel.bodies() == [1]


def test_one_of_a_few_workers_takes_at_once_however_long_it_was_told_for_nothing(make, clock):
    rig = make()
    rig.server.lines = 2
    lose_for_long(rig, clock)
    assert rig.server.named("ZCARD")[0] == ["p:unacked_leases"]
    assert len(rig.server.named("ZCARD")) <= 4
    rig.put(text_of(1))
    rig.server.push()
    rig.settle()
    assert rig.channel.bodies() == [1]


def test_a_message_that_came_just_before_the_server_watched_is_taken_at_once(make):
    rig = make()
    rig.server.waits = True
    rig.turn()
    rig.server.answer()
    rig.turn(2)
    rig.put(text_of(1))
    rig.server.waits = False
    rig.server.answer()
    rig.settle()
    assert rig.channel.bodies() == [1]


@pytest.mark.parametrize("command", ["EXISTS", "CLIENT CACHING"])
def test_a_server_that_cannot_tell_for_a_moment_is_looked_at_after_a_second_and_tells_again(make, clock, command):
    rig = make()
    rig.server.refuses[command] = NO("BUSY running a script")
    rig.settle()
    del rig.server.refuses[command]
    rig.put(text_of(1))
    rig.settle()
    assert rig.channel.bodies() == []
    clock.now_s += REFUSED_PAUSE_S
    rig.settle()
    assert rig.channel.bodies() == [1]
    rig.put(text_of(2))
    rig.server.push()
    rig.settle()
    assert rig.channel.bodies() == [1, 2]


def test_a_server_that_cannot_watch_any_more_is_asked_again_and_again(make, clock, caplog):
    rig = make()
    rig.server.refuses["EXISTS"] = NO("NOPERM no exists")
    rig.turn(2)
    assert "cannot tell" in caplog.text
    rig.server.forget()
    rig.settle()
    assert rig.server.named("EXISTS") == []
    rig.put(text_of(1))
    clock.now_s += 0.1
    rig.settle()
    assert rig.channel.bodies() == [1]


def test_a_take_that_stopped_at_its_bytes_is_followed_by_the_next_at_once(make):
    rig = make(prefetch=10, take_bytes=20, takes_in_flight=1)
    rig.put(text_of(1))
    rig.server.waits = True
    rig.turn()
    rig.server.answer()
    rig.turn()
    assert rig.server.asked_for() == [10, 9]
    assert rig.server.named("EXISTS") == []


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_take_that_is_refused_for_now_is_sent_again_after_a_pause_and_its_room_is_free_again(make, clock):
    rig = make(prefetch=4)
    rig.server.refuses[TAKE.name] = NO("OOM command not allowed")
    rig.receive(1)
    assert rig.server.asked_for() == [4]
    rig.server.refuses.clear()
    clock.now_s += REFUSED_PAUSE_S
    rig.settle()
    assert rig.server.asked_for()[1] == 4
    assert rig.channel.bodies() == [1]


def test_a_take_that_is_refused_for_good_is_a_lost_connection(make):
    rig = make()
    rig.server.refuses[TAKE.name] = NO("WRONGTYPE not a list")
    with pytest.raises(exceptions.ConnectionError, match="WRONGTYPE"):
        rig.turn()


def test_a_lease_that_has_run_out_is_got_anew_and_taking_goes_on(make, caplog):
    rig = make()
    rig.server.leased = False
    rig.put(text_of(1))
    rig.server.waits = True
    rig.turn()
    rig.server.answer()
    rig.server.leased = True
    rig.server.waits = False
    rig.settle()
    assert "lease had run out" in caplog.text
    assert rig.server.named(OPEN.name)[1][6:] == [rig.consumer.line, "30.0", ""]
    assert rig.channel.bodies() == [1]


# -- messages that nobody here wants -----------------------------------------------------------------------------------


def test_messages_of_a_queue_that_was_cancelled_meanwhile_go_back_the_last_one_first(make):
    rig = make(queues=("a", "b"), channel={"strategy": "priority"}, prefetch=6)
    rig.put(text_of(1), place=1)
    rig.put(text_of(2), text_of(3), place=2)
    rig.put(text_of(4), place=1)
    rig.server.waits = True
    rig.turn()
    rig.channel.consume("a")
    rig.server.waits = False
    rig.server.answer()
    rig.settle()
    assert rig.channel.bodies() == [1, 4]
    first = f"{rig.consumer.line}.1."
    assert rig.server.given_back() == [(f"{first}3", "R", "0", ""), (f"{first}2", "R", "0", "")]
    assert sorted(rig.holdings.living) == [f"{first}1", f"{first}4"]


def test_what_was_taken_of_a_cancelled_queue_and_not_delivered_goes_back_and_the_rest_is_delivered(make):
    rig = make(queues=("a", "b"), channel={"strategy": "priority"}, prefetch=6)
    rig.put(text_of(1), text_of(2), place=1)
    rig.put(text_of(3), text_of(4), place=2)
    rig.server.waits = True
    rig.turn()
    rig.channel.qos.prefetch_count = 1
    rig.server.answer()
    rig.turn()
    assert rig.channel.bodies() == [1]
    rig.channel.consume("a")
    rig.channel.qos.prefetch_count = 6
    rig.server.waits = False
    rig.settle()
    assert rig.channel.bodies() == [1, 2]
    first = f"{rig.consumer.line}.1."
    assert rig.server.given_back() == [(f"{first}4", "R", "0", ""), (f"{first}3", "R", "0", "")]


def test_a_message_that_is_no_json_is_left_recorded_and_the_rest_is_delivered(make, caplog):
    rig = make(prefetch=3)
    rig.put(text_of(1), BROKEN, text_of(2), b"\xff", text_of(3))
    rig.settle()
    rig.clock.now_s += 1
    rig.settle()
    assert rig.channel.bodies() == [1, 2, 3]
    assert caplog.text.count("is no JSON") == 2
    assert rig.server.given_back() == rig.server.acknowledged() == []
    assert len(rig.holdings.living) == 3


@pytest.mark.parametrize("text", [b"5", b"null", b"[]", b"{}", b"[" * 100_000], ids=lambda text: text[:4].decode())
def test_a_message_that_is_json_and_no_message_is_left_recorded_and_the_rest_is_delivered(make, text):
    rig = make(prefetch=3)
    rig.put(text, text_of(1))
    rig.settle()
    assert rig.channel.bodies() == [1]


def test_a_message_of_a_queue_without_acks_is_settled_by_its_delivery(make):
    rig = make()
    rig.channel.no_ack_queues.add("q")
    rig.receive(1)
    assert rig.channel.bodies() == [1]
    assert rig.server.acknowledged() == [rig.channel.tags()]
    assert rig.holdings.living == []


# -- acknowledging -----------------------------------------------------------------------------------------------------


def test_the_acks_of_one_turn_go_out_as_one_group(make):
    rig = make(prefetch=5)
    rig.put(*map(text_of, range(4)))
    rig.settle()
    tags = rig.channel.tags()
    rig.server.forget()
    rig.ack(tags[2], tags[0], tags[3])
    assert rig.server.heard == []
    rig.consumer.tick()
    acked = [tags[2], tags[0], tags[3]]
    assert rig.server.heard[:3] == [
        ["HDEL", "p:unacked", *acked],
        ["ZREM", "p:index", *acked],
        ["HDEL", rig.owner, *acked],
    ]
    assert not rig.holdings.acks_waiting


def test_many_acks_go_out_in_groups(make):
    rig = make()
    for number in range(ACKS_A_COMMAND + 3):
        rig.holdings.ack(str(number))
    rig.turn()
    assert [len(tags) for tags in rig.server.acknowledged()] == [ACKS_A_COMMAND, 3]


def test_the_count_of_a_message_goes_with_its_ack(make):
    rig = make()
    rig.server.counts = [2]
    rig.receive(1)
    rig.ack(*rig.channel.tags())
    rig.turn()
    assert len([words for words in rig.server.named("HDEL") if words[0] == "p:unacked_deliveries"]) == 1


def test_refused_acks_are_repeated_after_a_pause_before_all_others(make, clock, caplog):
    rig = make(prefetch=4)
    rig.put(*map(text_of, range(3)))
    rig.settle()
    tags = rig.channel.tags()
    rig.server.refuses["HDEL"] = NO("MISCONF no writes")
    rig.ack(*tags[:2])
    rig.settle()
    assert "2 acks were refused" in caplog.text
    rig.server.refuses.clear()
    rig.server.forget()
    rig.ack(tags[2])
    rig.settle()
    assert rig.server.acknowledged() == []
    assert rig.hub.timers_s[-1] == pytest.approx(REFUSED_PAUSE_S)
    clock.now_s += REFUSED_PAUSE_S
    rig.settle()
    assert rig.server.acknowledged() == [tags]
    assert rig.holdings.living == []


@pytest.mark.parametrize("command", ["HDEL p:unacked ", "ZREM p:index "])
def test_acks_of_which_a_part_was_refused_are_repeated(make, clock, command):
    rig = make().receive(1)
    rig.server.refuses[command] = NO("MISCONF no writes")
    rig.ack(*rig.channel.tags())
    rig.settle()
    rig.server.refuses.clear()
    rig.server.forget()
    clock.now_s += REFUSED_PAUSE_S
    rig.settle()
    assert rig.server.acknowledged() == [rig.channel.tags()]


def test_an_ack_of_another_thread_wakes_the_loop(make):
    rig = make().receive(1)
    assert rig.hub.ready() == []
    thread = threading.Thread(target=rig.consumer.ack, args=rig.channel.tags())
    thread.start()
    thread.join()
    assert len(rig.hub.ready()) == 1
    rig.turn()
    assert rig.server.acknowledged() == [rig.channel.tags()]


def test_while_it_drains_an_ack_does_not_wait_for_the_loop(make):
    rig = make().receive(1)
    rig.channel.consume()
    rig.consumer.drain()
    rig.consumer.ack(rig.channel.tags()[0])
    assert rig.server.acknowledged() == [rig.channel.tags()]


def test_while_it_drains_another_threads_ack_leaves_the_line_to_the_loop(make):
    rig = make().receive(1)
    rig.channel.consume()
    rig.consumer.drain()
    thread = threading.Thread(target=rig.consumer.ack, args=rig.channel.tags())
    thread.start()
    thread.join()
    assert rig.server.acknowledged() == []
    assert len(rig.hub.ready()) == 1
    rig.turn()
    assert rig.server.acknowledged() == [rig.channel.tags()]


def test_an_ack_raises_nothing_although_the_connection_breaks_while_it_drains(make):
    rig = make().receive(1)
    rig.channel.consume()
    rig.consumer.drain()
    rig.server.hang_up()
    rig.consumer.ack(rig.channel.tags()[0])


def test_an_ack_of_which_the_connection_breaks_while_it_drains_is_kept(make):
    rig = make().receive(1)
    rig.channel.consume()
    rig.consumer.drain()
    rig.server.hang_up()
    with contextlib.suppress(exceptions.ConnectionError):
        rig.consumer.ack(rig.channel.tags()[0])
    rig.close()
    assert rig.holdings.living == rig.channel.tags()


# -- giving back -------------------------------------------------------------------------------------------------------


def test_messages_go_back_in_order_in_steps_of_bounded_size(make):
    rig = make()
    tags = [str(number) for number in range(GIVE_BACK_A_COMMAND + 1)]
    rig.consumer.return_now([Return(tag, side=BACK, counted=True, text="new") for tag in tags])
    assert rig.server.given_back() == [(tag, "L", "1", "new") for tag in tags]
    steps = rig.server.named(GIVE_BACK.name)
    assert [(len(words) - 4) // 4 for words in steps] == [GIVE_BACK_A_COMMAND, 1]
    assert steps[0][:4] == ["p:unacked", "p:index", rig.owner, "p:unacked_deliveries"]


def test_what_goes_back_soon_goes_with_the_next_turn_and_is_taken_again_without_a_push(make):
    rig = make()
    rig.settle()
    rig.consumer.return_soon(Return("tag"))
    assert rig.server.given_back() == []
    assert rig.hub.ready()
    rig.receive(1)
    assert rig.server.given_back() == [("tag", "R", "0", "")]
    assert rig.channel.bodies() == [1]


def test_what_is_rejected_in_one_turn_keeps_its_order_behind_what_waits(make):
    rig = make()
    rig.turn()
    for tag in "abc":
        rig.consumer.return_soon(Return(tag, side=BACK, counted=True))
    rig.turn()
    assert [tag for tag, *_ in rig.server.given_back()] == ["a", "b", "c"]


def test_what_goes_back_to_the_front_in_one_turn_is_taken_in_its_order_again(make):
    rig = make()
    rig.turn()
    for tag in "abc":
        rig.consumer.return_soon(Return(tag))
    rig.turn()
    assert [tag for tag, *_ in rig.server.given_back()] == ["c", "b", "a"]


def test_while_it_drains_what_goes_back_does_not_wait_for_the_loop(make):
    rig = make()
    rig.turn()
    rig.channel.consume()
    rig.consumer.drain()
    rig.consumer.return_soon(Return("tag"))
    assert rig.server.given_back() == [("tag", "R", "0", "")]


def test_what_nobody_can_acknowledge_any_more_goes_back_with_the_next_turn_the_last_one_first(make):
    rig = make()
    for tag in ("before.1.1", "before.1.2"):
        rig.holdings.hold(Taken(tag, "q", b"", 0))
        rig.holdings.drop(tag)
    rig.turn()
    assert [tag for tag, *_ in rig.server.given_back()] == ["before.1.2", "before.1.1"]
    assert rig.holdings.living == []


def test_what_the_server_refuses_to_take_back_is_given_back_after_a_pause_in_its_order(make, clock, caplog):
    rig = make()
    for tag, side in (("one", FRONT), ("two", FRONT), ("last", BACK), ("very last", BACK)):
        rig.consumer.return_soon(Return(tag, side=side))
    rig.turn()
    in_order = rig.server.given_back()
    assert sorted(tag for tag, *_ in in_order) == ["last", "one", "two", "very last"]
    rig.server.forget()

    rig.server.refuses[GIVE_BACK.name] = NO("OOM command not allowed")
    for tag, side in (("one", FRONT), ("two", FRONT), ("last", BACK), ("very last", BACK)):
        rig.consumer.return_soon(Return(tag, side=side))
    rig.settle()
    assert "could not be given back, which will be repeated: OOM" in caplog.text
    del rig.server.refuses[GIVE_BACK.name]
    rig.server.forget()
    rig.settle()
    assert rig.server.given_back() == []
    assert rig.hub.timers_s[-1] == pytest.approx(REFUSED_PAUSE_S)
    clock.now_s += REFUSED_PAUSE_S
    rig.settle()
    assert rig.server.given_back() == in_order
    rig.server.forget()
    rig.settle()
    assert rig.server.given_back() == []


def test_what_is_refused_when_it_closes_is_left_to_the_end_of_the_lease(make, caplog):
    rig = make()
    rig.server.refuses[GIVE_BACK.name] = NO("OOM command not allowed")
    rig.consumer.return_now([Return("tag")])
    assert "could not be given back" in caplog.text
    del rig.server.refuses[GIVE_BACK.name]
    rig.server.forget()
    rig.close()
    assert [tag for tag, *_ in rig.server.given_back()] == ["tag"]


# -- publishing --------------------------------------------------------------------------------------------------------


def test_a_fanout_message_goes_out_with_the_next_turn(make):
    rig = make()
    rig.turn()
    assert rig.consumer.publish("/0.celeryev", "{}")
    assert rig.server.named("PUBLISH") == []
    rig.settle()
    assert rig.server.named("PUBLISH") == [["p:/0.celeryev", "{}"]]


def test_who_is_not_on_the_loops_thread_publishes_by_itself(make):
    rig = make()
    assert not rig.consumer.publish("topic", "{}")  # no turn so far: nobody knows which thread is the loop's
    rig.turn()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(rig.consumer.publish("topic", "{}")))
    thread.start()
    thread.join()
    assert answers == [False]
    rig.settle()
    assert rig.server.named("PUBLISH") == []


# -- stopping ----------------------------------------------------------------------------------------------------------


def lose(rig):
    rig.server.hang_up()
    with pytest.raises(exceptions.ConnectionError):
        rig.turn(3)
    assert rig.consumer.lost


def test_what_no_task_has_seen_goes_back_when_it_drains_the_last_one_first(make):
    rig = make(prefetch=3)
    rig.put(*map(text_of, range(3)))
    rig.server.waits = True
    rig.turn()
    rig.channel.qos.prefetch_count = 1
    rig.server.waits = False
    rig.server.answer()
    rig.turn()
    first = f"{rig.consumer.line}.1."
    assert rig.channel.tags() == [f"{first}1"]
    rig.consumer.drain()
    assert rig.server.given_back() == [(f"{first}3", "R", "0", ""), (f"{first}2", "R", "0", "")]
    assert rig.holdings.living == [f"{first}1"]


def test_takes_that_are_under_way_are_waited_for_and_go_back_when_it_drains(make):
    rig = make(prefetch=3, takes_in_flight=1)
    rig.put(*map(text_of, range(2)))
    rig.server.waits = True
    rig.turn()
    rig.server.answer()
    rig.server.waits = False
    rig.channel.consume()
    rig.consumer.drain()
    assert rig.channel.bodies() == []
    assert len(rig.server.given_back()) == 2
    assert rig.holdings.living == []


def test_a_shutdown_that_begins_while_it_is_decided_what_to_take_asks_for_nothing_of_no_queue(make):
    """A take of no queue would have kept the server busy for ever."""
    rig = make(prefetch=4, takes_in_flight=2)
    qos = rig.channel.qos

    class Interrupted:
        """As kombu's; the consumers are cancelled when the prefetch is asked for."""

        @property
        def prefetch_count(self):
            rig.channel.consume()
            return 4

        def __getattr__(self, name):
            return getattr(qos, name)

    rig.server.forget()
    rig.channel.qos = Interrupted()
    rig.consumer.tick()
    rig.channel.qos = qos
    assert rig.channel.active_queues == []
    assert [number_of_queues(words) for words in rig.server.heard if words[0] == TAKE.name] == [1]


def test_a_shutdown_that_begins_while_something_is_sent_does_not_send_in_the_middle_of_it(make):
    rig = make(prefetch=4, take_messages=1)
    rig.put(*map(text_of, range(2)))
    rig.turn()
    tag = rig.channel.tags()[0]
    rig.consumer.ack(tag)

    def shut_down():
        rig.channel.consume()
        rig.consumer.drain()
        rig.consumer.return_soon(Return("unfinished"))
        rig.consumer.ack("done")
        assert not rig.consumer.publish("topic", "{}")

    rig.line.signal = shut_down
    rig.server.forget()
    rig.consumer.tick()
    assert rig.server.named("HDEL")[0] == ["p:unacked", tag]
    assert rig.server.given_back() == []
    rig.close()
    given_back = [tag for tag, *_ in rig.server.given_back()]
    assert "unfinished" in given_back
    assert ["done"] in rig.server.acknowledged()
    assert rig.holdings.lines_before == []


def test_what_is_noted_to_go_back_goes_back_with_the_close(make):
    rig = make()
    rig.turn()
    rig.consumer.return_soon(Return("tag"))
    rig.close()
    assert rig.server.given_back() == [("tag", "R", "0", "")]


def test_a_close_tells_everything_and_then_leaves_and_then_gives_the_lease_up(make):
    rig = make(prefetch=4)
    rig.put(*map(text_of, range(2)))
    rig.settle()
    rig.ack(*rig.channel.tags())
    line = rig.consumer.line
    rig.close()
    (heard,) = rig.left
    assert ["HDEL", "p:unacked", *rig.channel.tags()] in heard
    assert ["ZREM", "p:unacked_leases", line] not in heard
    assert rig.server.heard[-1] == ["ZREM", "p:unacked_leases", line]
    assert rig.holdings.lines_before == []
    assert rig.hub.readers == {}
    assert rig.consumer.lost


def test_the_lease_is_kept_to_its_end_where_something_is_left_behind(make, caplog):
    """It is the only thing that brings those messages back soon."""
    rig = make()
    rig.server.left_behind = 3
    rig.close()
    assert rig.server.named("ZREM") == []
    assert "3 messages are left behind" in caplog.text


def test_what_still_runs_since_a_lost_connection_goes_back_with_the_end_in_its_order(make):
    first = make(prefetch=4).receive(1, 2, 3)
    messages = [Message() for _ in range(3)]
    for tag, message in zip(first.channel.tags(), messages, strict=True):
        first.holdings.orphan(tag, message)
    first.server.hang_up()
    first.consumer.probe()
    assert first.consumer.lost
    first.close()
    second = make(holdings=first.holdings)
    second.turn()
    assert second.server.given_back() == []
    second.close()
    assert second.server.given_back() == [(tag, "R", "1", "") for tag in reversed(first.channel.tags())]


def test_a_refusal_to_give_the_lease_up_is_no_trouble(make, caplog):
    rig = make()
    rig.server.refuses["ZREM p:unacked_leases"] = NO("MISCONF no writes")
    rig.close()
    assert "ends by itself" in caplog.text
    assert rig.hub.readers == {}


def test_a_lost_connection_puts_unconfirmed_acks_back_in_front_and_keeps_the_line_for_the_next_one(make):
    rig = make(prefetch=6)
    rig.put(*map(text_of, range(4)))
    rig.settle()
    tags = rig.channel.tags()
    rig.server.waits = True
    for tag in tags[:2]:
        rig.ack(tag)
        rig.turn()
    lose(rig)
    rig.ack(tags[2])
    rig.close()
    assert rig.holdings.take_acks(10)[0] == tags[:3]
    assert tags[3] in rig.holdings
    assert rig.holdings.lines_before == [rig.consumer.line]
    assert rig.left == []
    assert rig.hub.readers == {}


def test_confirmed_acks_are_not_told_again(make):
    rig = make().receive(1)
    rig.ack(*rig.channel.tags())
    rig.settle()
    lose(rig)
    rig.close()
    assert rig.holdings.living == []


def test_acks_that_are_refused_while_it_closes_are_kept_for_the_next_line(make):
    rig = make().receive(1)
    rig.server.refuses["HDEL"] = NO("MISCONF no writes")
    rig.ack(*rig.channel.tags())
    rig.close()
    assert rig.holdings.living == rig.channel.tags()
    assert rig.holdings.lines_before == [rig.consumer.line]
    assert rig.left == []


def test_refused_acks_are_repeated_without_a_pause_when_it_closes(make):
    rig = make().receive(1)
    rig.server.refuses["HDEL"] = NO("MISCONF no writes")
    rig.ack(*rig.channel.tags())
    rig.settle()
    rig.server.refuses.clear()
    rig.server.forget()
    rig.close()
    assert rig.server.acknowledged() == [rig.channel.tags()]
    assert rig.holdings.living == []
    assert len(rig.left) == 1


def test_a_connection_that_breaks_while_it_closes_is_one_that_was_lost(make):
    rig = make().receive(1)
    rig.ack(*rig.channel.tags())
    rig.server.hang_up()
    rig.close()
    assert rig.holdings.living == rig.channel.tags()
    assert rig.holdings.lines_before == [rig.consumer.line]


def test_on_a_lost_connection_acks_are_kept_and_nothing_is_published_or_given_back(make):
    rig = make().receive(1)
    lose(rig)
    rig.consumer.ack(rig.channel.tags()[0])
    assert rig.holdings.acks_waiting
    assert not rig.consumer.publish("topic", "{}")
    with pytest.raises(exceptions.ConnectionError):
        rig.consumer.return_now([Return("tag")])


def test_the_next_line_keeps_what_is_worked_on_and_tells_what_the_last_one_could_not(make, prepare):
    first = make(prefetch=6)
    first.put(*map(text_of, range(3)))
    first.settle()
    tags = first.channel.tags()
    first.server.waits = True
    first.ack(tags[0])
    first.turn()
    lose(first)
    first.close()
    second = prepare(holdings=first.holdings).open()
    (opened,) = second.server.named(OPEN.name)
    assert (opened[8], sorted(opened[9:])) == (first.consumer.line, tags)
    second.turn()
    assert second.server.acknowledged() == [tags[:1]]


def test_a_server_that_says_nothing_for_too_long_loses_the_connection(make, clock):
    rig = make()
    rig.server.waits = True
    rig.turn()
    clock.now_s += 5.1
    with pytest.raises(exceptions.ConnectionError, match="no reply within 5 s"):
        rig.turn()


def test_repr_shows_the_line_and_what_waits(make):
    rig = make(prefetch=2)
    rig.turn()
    assert rig.consumer.line[:8] in repr(rig.consumer)
    assert "0 in the inbox" in repr(rig.consumer)
