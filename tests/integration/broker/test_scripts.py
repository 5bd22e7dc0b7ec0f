"""What the broker's scripts do to a real server: against a model of its queues, and at the edges of what it allows."""

import itertools
import json
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha1
from typing import NamedTuple

import kombu
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kombu.transport.redis import Channel as StockChannel
from kombu.transport.redis import Mutex
from kombu.utils.json import dumps

from legit_embedding.broker.caretaker import run
from legit_embedding.broker.names import Keys
from legit_embedding.broker.restore_scripts import OVERDUE, OVERDUE_LOOKS, RESTORE, RESTORE_DEAD
from legit_embedding.broker.scripts import DELIVERIES_TTL_S, GIVE_BACK, OPEN, RENEW, TAKE, TAKE_MAX

FRONT, BACK = "R", "L"
STEPS = StockChannel.priority_steps
LEASE_S = 600
TIMEOUT_S = 3600
PLENTY = 1 << 30
AWKWARD = ["plain", "two words", 'it\'s "quoted" \\ so', "Größe 数", "a|1|b", "line\nbreak", "{tag}:*"]


def list_of(queue, priority=0):
    return f"{queue}{StockChannel.sep}{priority}" if priority else queue


def text_of(name, queue, *, priority=0, filler=""):
    """A message as kombu sends it; its non-ASCII letters take two bytes each."""
    delivery_info = {"exchange": "", "routing_key": queue}
    properties = {"delivery_tag": name, "delivery_info": delivery_info, "priority": priority}
    payload = {"body": filler, "headers": {"empty": []}, "properties": properties}
    return json.dumps(payload, ensure_ascii=False).encode()


def redelivered(text):
    """As kombu writes it when it restores a message."""
    payload = json.loads(text)
    payload["headers"]["redelivered"] = True
    payload["properties"]["delivery_info"]["redelivered"] = True
    return dumps(payload).encode()


def name_in(text):
    return json.loads(text)["properties"]["delivery_tag"]


class Taken(NamedTuple):
    tag: str
    key: str
    text: bytes
    deliveries: int


class Broker:
    """The scripts with their keys and arguments, as a worker calls them."""

    def __init__(self, client, prefix=""):
        self.client = client
        self.keys = Keys.create(prefix=prefix, unacked="unacked", index="unacked_index", mutex="unacked_mutex")
        self._takes = itertools.count(1)
        self._lines = itertools.count(1)

    def push(self, text, queue, priority=0):
        self.client.lpush(self.keys.of(list_of(queue, priority)), text)

    def list(self, queue, priority=0):
        """The next message first."""
        return self.client.lrange(self.keys.of(list_of(queue, priority)), 0, -1)[::-1]

    def open(self, before="", kept=()):
        """A new line, and how many messages of the one before went back."""
        line = f"line{next(self._lines)}"
        keys = self.keys
        names = [keys.unacked, keys.index, keys.leases, keys.owner(line), keys.owner(before), keys.deliveries]
        return line, run(self.client, OPEN, names, line, LEASE_S, before, *kept)

    def take(self, line, queues, room=100, *, size=PLENTY, rotate=False):
        """None where the line has no lease."""
        keys = self.keys
        lists = [keys.of(list_of(queue, step)) for step in STEPS for queue in queues]
        names = [keys.unacked, keys.index, keys.leases, keys.owner(line), keys.deliveries, *lists]
        first = f"{line}.{next(self._takes)}."
        ends = [f', "", {json.dumps(queue)}]' for queue in queues]
        reply = run(self.client, TAKE, names, len(queues), room, size, "1" if rotate else "0", line, first, *ends)
        if reply is None:
            return None
        found, *counts = reply
        return [
            Taken(f"{first}{i // 2 + 1}", lists[found[i] - 1], found[i + 1], counts[0][i // 2] if counts else 0)
            for i in range(0, len(found), 2)
        ]

    def ack(self, line, *tags, useless=()):
        """`useless`: the texts whose counts are not needed any more."""
        keys = self.keys
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hdel(keys.unacked, *tags)
            pipe.zrem(keys.index, *tags)
            for text in useless:
                pipe.hdel(keys.deliveries, digest(text))
            pipe.hdel(keys.owner(line), *tags)
            pipe.execute()

    def give_back(self, line, *returns):
        """Each of `returns`: tag, side, whether it counts, another text or nothing."""
        keys = self.keys
        arguments = []
        for tag, side, counted, text in returns:
            arguments += [tag, side, "1" if counted else "0", text]
        return run(self.client, GIVE_BACK, [keys.unacked, keys.index, keys.owner(line), keys.deliveries], *arguments)

    def expire(self, line, at_s=0.0):
        self.client.zadd(self.keys.leases, {line: at_s}, xx=True)

    def restore_dead(self, most=100):
        keys = self.keys
        return run(
            self.client, RESTORE_DEAD, [keys.leases, keys.unacked, keys.index, keys.deliveries], keys.owners, most
        )

    def renew(self, line, *, scores=True):
        keys = self.keys
        return run(
            self.client, RENEW, [keys.leases, keys.index, keys.owner(line)], line, LEASE_S, "1" if scores else "0"
        )

    def age(self, *tags):
        """The first is the oldest."""
        self.client.zadd(self.keys.index, {tag: score for score, tag in enumerate(tags, 1)}, xx=True)

    def overdue(self, token, most=100):
        keys = self.keys
        names = [keys.index, keys.unacked, keys.mutex, keys.leases]
        found = run(self.client, OVERDUE, names, TIMEOUT_S, most, token, 300, keys.owners)
        return found if found is None else list(zip(found[::2], found[1::2], strict=True))

    def restore(self, token, *restored):
        """Each of `restored`: tag, list or nothing, text."""
        keys = self.keys
        lists, arguments = {}, []
        for tag, key, text in restored:
            arguments += [tag, lists.setdefault(key, len(lists) + 1) if key else 0, text]
        return run(self.client, RESTORE, [keys.index, keys.unacked, keys.mutex, *lists], token, *arguments)

    def held(self):
        """Tag to text, from what any other worker would read."""
        held = {}
        for tag, value in self.client.hgetall(self.keys.unacked).items():
            payload, exchange, routing_key = json.loads(value)
            assert (exchange, type(routing_key)) == ("", str)
            held[tag.decode()] = payload
        return held

    def owned(self, line):
        return sorted(tag.decode() for tag in self.client.hkeys(self.keys.owner(line)))

    def indexed(self):
        return {tag.decode(): score for tag, score in self.client.zrange(self.keys.index, 0, -1, withscores=True)}


def digest(text):
    """The name of a message's count."""
    return sha1(text).hexdigest()


# -- against a model ---------------------------------------------------------------------------------------------------

QUEUES = ["a", "b|1|b", "Größe \"c'"]
KEYS = [list_of(queue, step) for step in STEPS for queue in QUEUES]


@dataclass
class Record:
    """A message that somebody has taken; `line` is None for a stock worker's."""

    text: bytes
    key: str
    queue: str
    line: str | None
    deliveries: int = 0


@dataclass
class Model:
    """Queues as lists, the next message first, and who holds what."""

    lists: dict[str, list[bytes]] = field(default_factory=lambda: {key: [] for key in KEYS})
    held: dict[str, Record] = field(default_factory=dict)
    owned: dict[str, list[str]] = field(default_factory=dict)
    """Of each line its tags, the oldest first; with those whose message was restored over its head."""
    leases: dict[str, float | None] = field(default_factory=dict)
    """None: valid. Else when it ran out."""
    counts: dict[bytes, int] = field(default_factory=dict)
    old: dict[str, int] = field(default_factory=dict)
    """Tags that look overdue, by when they were taken."""

    def next_of(self, queues, *, rotate=False):
        """Takes one message in kombu's order; the queue it is of goes last where they take turns."""
        for step in STEPS:
            for queue in queues:
                if self.lists[list_of(queue, step)]:
                    return queue, list_of(queue, step), self.lists[list_of(queue, step)].pop(0)
        return None

    def take(self, queues, room, size, *, rotate):
        turn, taken = list(queues), []
        while len(taken) < room and size > 0:
            found = self.next_of(turn)
            if found is None:
                break
            taken.append(found)
            size -= len(found[2])
            if rotate:
                turn.remove(found[0])
                turn.append(found[0])
        return taken

    def put(self, key, side, text):
        self.lists[key].insert(0 if side == FRONT else len(self.lists[key]), text)

    def give_back(self, line, tag, side, counted, text=b""):
        """Whether there was anything to give back."""
        if tag in self.owned[line]:
            self.owned[line].remove(tag)
        record = self.held.get(tag)
        if record is None:
            return False
        del self.held[tag]
        self.old.pop(tag, None)
        text = text or record.text
        if counted:
            count = self.counts.get(record.text, 0) + 1
            if text != record.text:
                self.counts.pop(record.text, None)
            self.counts[text] = count
        self.put(record.key, side, text)
        return True

    def overdue(self, most):
        """What stock workers and the dead hold; what is met meanwhile of the living is young again."""
        found = []
        for tag in sorted(self.old, key=self.old.get):
            if len(found) == most:
                break
            if self.leases.get(self.held[tag].line, 0.0) is None:
                del self.old[tag]
            else:
                found.append(tag)
        return found

    def forget(self, tag):
        self.old.pop(tag, None)
        return self.held.pop(tag, None)


class ScriptsMachine(RuleBasedStateMachine):
    """Workers of ours with lines that come, go and die, and stock workers, on the same queues."""

    def __init__(self, client):
        super().__init__()
        client.flushall()
        self.client = client
        self.broker = Broker(client)
        self.model = Model()
        self.names = set()
        self.tags = {}
        self.numbers = itertools.count(1)
        self.looked = None

    @initialize(queues=st.lists(st.sampled_from(QUEUES), min_size=6, max_size=12), data=st.data())
    def start(self, queues, data):
        """With something to do, and somebody to do it."""
        for queue in queues:
            self.push(queue, [data.draw(st.sampled_from(STEPS[:2]))], "")
        for _ in range(2):
            self.open()

    # -- producers -----------------------------------------------------------------------------------------------------

    @rule(
        queue=st.sampled_from(QUEUES),
        priorities=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4),
        filler=st.sampled_from(["", "x" * 150, "ä" * 300]),
    )
    def push(self, queue, priorities, filler):
        for priority in priorities:
            name = f"message{next(self.numbers)}"
            text = text_of(name, queue, priority=priority, filler=filler)
            self.names.add(name)
            self.broker.push(text, queue, priority)
            self.model.put(list_of(queue, priority), BACK, text)

    # -- our workers ---------------------------------------------------------------------------------------------------

    def any_line(self, data):
        """Those that hold something come first: they are drawn more often."""
        lines = sorted(self.model.owned, key=lambda line: -len(self.model.owned[line]))
        return data.draw(st.sampled_from([*lines, *lines[:2]]), label="line")

    def any_of(self, data, choices):
        choices = sorted(choices)
        if not choices:
            return []
        return data.draw(st.lists(st.sampled_from(choices), unique=True, min_size=1, max_size=6), label="chosen")

    def know(self, line):
        self.model.owned[line] = []
        self.model.leases[line] = None

    @precondition(lambda self: sum(end is None for end in self.model.leases.values()) < 4)
    @rule()
    def open(self):
        line, returned = self.broker.open()
        assert returned == 0
        self.know(line)

    @precondition(lambda self: self.model.owned)
    @rule(data=st.data())
    def open_instead_of_a_lost_one(self, data):
        before = self.any_line(data)
        kept = self.any_of(data, {*self.model.owned[before], *list(self.tags)[-1:]})
        line, returned = self.broker.open(before, kept)
        self.know(line)
        self.model.leases.pop(before, None)
        lost = list(self.model.owned[before])
        for tag in lost:
            if tag in kept:
                self.model.owned[line].append(tag)
                if tag in self.model.held:
                    self.model.held[tag].line = line
        rest = [tag for tag in reversed(lost) if tag not in kept]
        assert returned == sum(self.model.give_back(before, tag, FRONT, counted=False) for tag in rest)
        self.model.owned[before] = []

    @precondition(lambda self: self.model.owned)
    @rule(
        data=st.data(),
        queues=st.lists(st.sampled_from(QUEUES), unique=True, min_size=1),
        room=st.integers(1, 8),
        size=st.sampled_from([1, 400, 1000, PLENTY]),
        rotate=st.booleans(),
    )
    def take(self, data, queues, room, size, rotate):
        self.take_over(self.any_line(data), queues, room, size, rotate)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), queues=st.permutations(QUEUES), room=st.integers(3, 8), rotate=st.booleans())
    def take_much(self, data, queues, room, rotate):
        line = data.draw(st.sampled_from(sorted(self.model.leases)), label="line")
        self.take_over(line, queues, room, PLENTY, rotate)

    def take_over(self, line, queues, room, size, rotate):
        taken = self.broker.take(line, queues, room, size=size, rotate=rotate)
        if line not in self.model.leases:
            assert taken is None
            return
        expected = self.model.take(queues, room, size, rotate=rotate)
        assert [(each.key, each.text) for each in taken] == [(key, text) for _, key, text in expected]
        assert [each.deliveries for each in taken] == [self.model.counts.get(text, 0) for _, _, text in expected]
        for each, (queue, key, text) in zip(taken, expected, strict=True):
            assert each.tag not in self.tags
            self.tags[each.tag] = each
            self.model.held[each.tag] = Record(text, key, queue, line, each.deliveries)
            self.model.owned[line].append(each.tag)

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def ack(self, data):
        """Late ones, too: of messages that went elsewhere meanwhile, or over a line that is not theirs any more."""
        line = self.any_line(data)
        tags = self.any_of(data, {*self.model.owned[line], *list(self.tags)[-3:]})
        if not tags:
            return
        useless = [self.tags[tag].text for tag in tags if self.tags[tag].deliveries]
        self.broker.ack(line, *tags, useless=useless)
        for tag in tags:
            record = self.model.forget(tag)
            if record is not None:
                self.names.remove(name_in(record.text))
            if tag in self.model.owned[line]:
                self.model.owned[line].remove(tag)
        for text in useless:
            self.model.counts.pop(text, None)

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), side=st.sampled_from([FRONT, BACK]), counted=st.booleans(), another_text=st.booleans())
    def give_back(self, data, side, counted, another_text):
        """Late ones, too, of messages that nobody holds any more."""
        line = self.any_line(data)
        gone = set(list(self.tags)[-3:]) - set(self.model.held)
        tags = self.any_of(data, {*self.model.owned[line], *gone})
        returns = [(tag, side, counted, redelivered(self.tags[tag].text) if another_text else b"") for tag in tags]
        returned = self.broker.give_back(line, *returns)
        assert returned == sum(self.model.give_back(line, *each) for each in returns)

    # -- leases --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def a_lease_runs_out(self, data):
        line = data.draw(st.sampled_from(sorted(self.model.leases)), label="line")
        at_s = float(next(self.numbers))
        self.broker.expire(line, at_s)
        self.model.leases[line] = at_s

    @precondition(lambda self: self.model.owned)
    @rule(data=st.data(), scores=st.booleans())
    def renew(self, data, scores):
        line = self.any_line(data)
        assert self.broker.renew(line, scores=scores) == (line in self.model.leases)
        if line in self.model.leases:
            self.model.leases[line] = None
            if scores:
                for tag in self.model.owned[line]:
                    self.model.old.pop(tag, None)

    @rule(most=st.sampled_from([1, 2, 100]))
    def restore_the_dead(self, most):
        dead = [(at_s, line) for line, at_s in self.model.leases.items() if at_s is not None]
        returned, more = self.broker.restore_dead(most)
        assert more == bool(dead)
        if not dead:
            assert returned == 0
            return
        _, line = min(dead)
        tags = self.model.owned[line][::-1]
        assert returned == sum(self.model.give_back(line, tag, FRONT, counted=True) for tag in tags[:most])
        if len(tags) <= most:
            del self.model.leases[line]

    # -- stock workers -------------------------------------------------------------------------------------------------

    @rule(queues=st.lists(st.sampled_from(QUEUES), unique=True, min_size=1))
    def a_stock_worker_takes(self, queues):
        expected = self.model.next_of(queues)
        for key in [list_of(queue, step) for step in STEPS for queue in queues]:
            text = self.client.rpop(key)
            if text is not None:
                break
        assert text == (expected and expected[2])
        if expected is None:
            return
        queue, key, _ = expected
        tag = name_in(text)
        keys = self.broker.keys
        with self.client.pipeline() as pipe:
            pipe.zadd(keys.index, {tag: time.time()})
            pipe.hset(keys.unacked, tag, dumps([json.loads(text), "", queue]))
            pipe.execute()
        self.model.held[tag] = Record(text, key, queue, None)

    @rule(data=st.data())
    def a_stock_worker_acks(self, data):
        for tag in self.any_of(data, [tag for tag, record in self.model.held.items() if record.line is None]):
            with self.client.pipeline() as pipe:
                pipe.zrem(self.broker.keys.index, tag)
                pipe.hdel(self.broker.keys.unacked, tag)
                pipe.execute()
            self.names.remove(name_in(self.model.forget(tag).text))

    # -- the visibility time-out ---------------------------------------------------------------------------------------

    @rule(data=st.data())
    def time_passes_over(self, data):
        tags = self.any_of(data, self.model.held)
        for tag in tags:
            score = next(self.numbers)
            self.client.zadd(self.broker.keys.index, {tag: score}, xx=True)
            self.model.old[tag] = score

    @rule(most=st.sampled_from([1, 3, 100]))
    def look_for_what_is_overdue(self, most):
        """What is found is restored in another step, so that everything may happen in between."""
        token = uuid.uuid4().hex
        found = self.broker.overdue(token, most)
        if self.looked is not None:
            assert found is None
            return
        assert [tag.decode() for tag, _ in found] == self.model.overdue(most)
        restored = []
        for tag, value in found:
            payload, _, routing_key = json.loads(value)
            key = list_of(routing_key, payload["properties"]["priority"])
            restored.append((tag.decode(), key, redelivered(json.dumps(payload))))
        if found:
            self.looked = token, restored[::-1]

    @precondition(lambda self: self.looked is not None)
    @rule()
    def restore_what_was_found(self):
        (token, restored), self.looked = self.looked, None
        expected = 0
        for tag, key, text in restored:
            if self.model.forget(tag) is not None:
                self.model.put(key, FRONT, text)
                expected += 1
        assert self.broker.restore(token, *restored) == expected

    # -- what holds at all times ---------------------------------------------------------------------------------------

    @invariant()
    def the_server_holds_what_the_model_says(self):
        keys, model = self.broker.keys, self.model
        lines = sorted(model.owned)
        with self.client.pipeline() as pipe:
            for key in KEYS:
                pipe.lrange(key, 0, -1)
            pipe.hgetall(keys.unacked)
            pipe.zrange(keys.index, 0, -1, withscores=True)
            pipe.zrange(keys.leases, 0, -1, withscores=True)
            pipe.hgetall(keys.deliveries)
            pipe.exists(keys.mutex)
            pipe.keys("*")
            for line in lines:
                pipe.hkeys(keys.owner(line))
            replies = pipe.execute()
        lists, (unacked, index, leases, counts, mutex, names, *owners) = replies[: len(KEYS)], replies[len(KEYS) :]
        unacked = {tag.decode(): json.loads(value) for tag, value in unacked.items()}
        index = {tag.decode(): score for tag, score in index}

        each_once = [name_in(text) for texts in lists for text in texts]
        each_once += [payload["properties"]["delivery_tag"] for payload, _, _ in unacked.values()]
        assert sorted(each_once) == sorted(self.names)

        assert {key: texts[::-1] for key, texts in zip(KEYS, lists, strict=True)} == model.lists
        assert unacked == {tag: [json.loads(each.text), "", each.queue] for tag, each in model.held.items()}

        assert index.keys() == unacked.keys()
        assert {tag: score for tag, score in index.items() if score < 1e9} == model.old
        owned = {line: {tag.decode() for tag in tags} for line, tags in zip(lines, owners, strict=True)}
        assert owned == {line: set(tags) for line, tags in model.owned.items()}
        for tag, record in model.held.items():
            assert [line for line in lines if tag in owned[line]] == ([record.line] if record.line else [])

        assert {line.decode(): at_s if at_s < 1e9 else None for line, at_s in leases} == model.leases
        assert {name.decode(): int(count) for name, count in counts.items()} == {
            digest(text): count for text, count in model.counts.items()
        }
        assert bool(mutex) == (self.looked is not None)
        known = {*KEYS, keys.unacked, keys.index, keys.leases, keys.deliveries, keys.mutex, *map(keys.owner, lines)}
        assert {name.decode() for name in names} <= known


def test_the_scripts_do_what_the_model_says_whatever_happens_between_them(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        run_state_machine_as_test(
            lambda: ScriptsMachine(client),
            settings=settings(
                max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )


# -- plain promises ----------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(redis_url):
    """A client of the shared server, whose replies are bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def broker(raw):
    return Broker(raw)


@contextmanager
def stock_channel(url, **options):
    """Of kombu's own transport, whatever the scheme's alias points to."""
    connection = kombu.Connection(url, transport_options={"visibility_timeout": TIMEOUT_S, **options})
    connection.transport_cls = "kombu.transport.redis:Transport"
    with connection:
        assert type(connection.default_channel) is StockChannel
        yield connection.default_channel


def restore_like_stock(channel):
    channel.qos.restore_visible(num=100, interval=1)


def hold(broker, *names, queue="q", priority=0):
    """A line that has taken messages of these names, and their tags."""
    for name in names:
        broker.push(text_of(name, queue, priority=priority), queue, priority)
    line, _ = broker.open()
    return line, [each.tag for each in broker.take(line, [queue])]


def left_behind(broker, *names):
    """Overdue tags of a line that is dead, the oldest first."""
    line, tags = hold(broker, *names)
    broker.expire(line)
    broker.age(*tags)
    return tags


def names_of(texts):
    return [name_in(text) for text in texts]


def assert_nothing_is_held(broker, *lines):
    assert broker.held() == {}
    assert broker.indexed() == {}
    assert [broker.owned(line) for line in lines] == [[] for _ in lines]


def test_a_line_without_a_lease_takes_nothing(broker):
    line, _ = broker.open()
    other, _ = broker.open(before=line)
    broker.push(text_of("m", "q"), "q")
    assert broker.take(line, ["q"]) is None
    assert broker.take("never opened", ["q"]) is None
    assert names_of(broker.list("q")) == ["m"]
    assert names_of(each.text for each in broker.take(other, ["q"])) == ["m"]


def test_a_take_of_no_queue_takes_nothing_and_ends(broker):
    line, _ = broker.open()
    broker.push(text_of("m", "q"), "q")
    assert broker.take(line, []) == []
    assert names_of(broker.list("q")) == ["m"]


def test_a_take_ends_with_the_message_that_reaches_its_bytes(broker):
    texts = [text_of(f"m{number}", "q", filler="ä" * 100) for number in range(6)]
    for text in texts:
        broker.push(text, "q")
    line, _ = broker.open()
    size = len(texts[0])
    assert [len(broker.take(line, ["q"], size=bound)) for bound in (1, size, size + 1)] == [1, 1, 2]
    assert broker.take(line, ["q"], size=0) == []
    assert len(broker.list("q")) == 2


@pytest.mark.parametrize("prefix", ["", "site:", "{one} slot|"])
@pytest.mark.parametrize("queue", AWKWARD)
def test_a_queue_of_any_name_gets_its_messages_back(redis_url, raw, prefix, queue):
    """By a give back, by the death of the line, and by stock kombu."""
    broker = Broker(raw, prefix)
    line, tags = hold(broker, "m", queue=queue, priority=3)
    broker.give_back(line, (tags[0], FRONT, False, ""))
    assert broker.list(queue, 3) == [text_of("m", queue, priority=3)]
    broker.take(line, [queue])
    broker.expire(line)
    broker.restore_dead()
    assert broker.list(queue, 3) == [text_of("m", queue, priority=3)]
    line, _ = broker.open()
    broker.age(broker.take(line, [queue])[0].tag)
    with stock_channel(redis_url, global_keyprefix=prefix) as channel:
        restore_like_stock(channel)
    assert broker.list(queue, 3) == [redelivered(text_of("m", queue, priority=3))]


def test_all_keys_bear_the_prefix(raw):
    broker = Broker(raw, "site:")
    line, tags = hold(broker, "a", "b")
    broker.give_back(line, (tags[1], FRONT, True, ""))
    broker.expire(line)
    broker.age(tags[0])
    assert broker.overdue("token")
    keys = "q unacked unacked_deliveries unacked_index unacked_leases unacked_mutex".split()
    assert {key.decode() for key in raw.keys("*")} == {f"site:{key}" for key in [*keys, f"unacked_lease.{line}"]}


@pytest.mark.parametrize("text", [b"", b"not json", b"]", b"\x00\xff\r\n", b'["a|1|b"]', b"x" * (1 << 20)])
def test_a_message_of_any_kind_comes_back_byte_by_byte(broker, text):
    broker.push(text, "q")
    line, _ = broker.open()
    (taken,) = broker.take(line, ["q"])
    assert taken.text == text
    assert broker.give_back(line, (taken.tag, FRONT, True, "")) == 1
    assert broker.list("q") == [text]
    (taken,) = broker.take(line, ["q"])
    assert taken[2:] == (text, 1)
    broker.expire(line)
    broker.restore_dead()
    assert broker.list("q") == [text]
    assert_nothing_is_held(broker, line)


def test_the_count_of_a_message_goes_with_its_new_text(broker, raw):
    line, (tag,) = hold(broker, "m")
    changed = redelivered(text_of("m", "q"))
    broker.give_back(line, (tag, BACK, True, ""))
    broker.give_back(line, (broker.take(line, ["q"])[0].tag, BACK, True, changed))
    (taken,) = broker.take(line, ["q"])
    assert taken[2:] == (changed, 2)
    assert raw.hkeys(broker.keys.deliveries) == [digest(changed).encode()]
    assert DELIVERIES_TTL_S - 60 < raw.ttl(broker.keys.deliveries) <= DELIVERIES_TTL_S


def test_a_full_server_hands_out_messages_and_takes_them_back(own_server):
    with redis.Redis.from_url(own_server.url()) as client:
        broker = Broker(client)
        names = [f"m{number}" for number in range(10)]
        for name in names:
            broker.push(text_of(name, "q"), "q")
        line, _ = broker.open()
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            broker.push(b"no more", "q")
        taken = broker.take(line, ["q"], 6)
        assert names_of(each.text for each in taken) == names[:6]
        assert broker.held().keys() == broker.indexed().keys() == set(broker.owned(line)) == {t.tag for t in taken}
        broker.ack(line, taken[0].tag)
        assert broker.give_back(line, (taken[1].tag, FRONT, True, "")) == 1
        client.config_set("maxmemory", 0)
        broker.expire(line)
        client.config_set("maxmemory", 1)
        assert broker.restore_dead() == [4, 1]
        assert sorted(names_of(broker.list("q"))) == names[1:]
        assert_nothing_is_held(broker, line)


def test_a_lease_is_renewed_on_a_full_server(own_server):
    """Else all that living workers hold would go back to the queues and run twice."""
    with redis.Redis.from_url(own_server.url()) as client:
        broker = Broker(client)
        line, _ = hold(broker, "m")
        client.config_set("maxmemory", 1)
        assert broker.renew(line) == 1


def test_a_line_is_opened_on_a_full_server(own_server):
    """Else a worker falls back to stock kombu, which loses what it takes from a full server."""
    with redis.Redis.from_url(own_server.url()) as client:
        broker = Broker(client)
        broker.push(text_of("m", "q"), "q")
        client.config_set("maxmemory", 1)
        line, _ = broker.open()
        assert len(broker.take(line, ["q"])) == 1


@pytest.mark.parametrize("key", ["unacked", "unacked_index", "unacked_lease.line1"])
def test_what_cannot_be_recorded_is_not_taken(broker, raw, key):
    line, _ = broker.open()
    assert line == "line1"
    texts = [text_of(name, "q") for name in "abc"]
    for text in texts:
        broker.push(text, "q")
    raw.set(key, "of another type")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        broker.take(line, ["q"], 2)
    assert broker.list("q") == texts
    raw.delete(key)
    assert_nothing_is_held(broker, line)


def test_a_queue_whose_key_is_of_another_type_costs_no_message_of_another_queue(broker, raw):
    line, _ = broker.open()
    broker.push(text_of("m", "good"), "good")
    raw.set("bad", "of another type")
    with suppress(redis.exceptions.ResponseError):
        broker.take(line, ["good", "bad"])
    assert len(broker.list("good")) + len(broker.held()) == 1


def test_a_take_that_asks_for_too_many_messages_loses_none(broker, raw):
    line, _ = broker.open()
    raw.lpush("q", *[text_of(f"m{number}", "q") for number in range(5000)])
    with suppress(redis.exceptions.ResponseError):
        broker.take(line, ["q"], 5000)
    assert len(broker.list("q")) + len(broker.held()) == 5000


def test_a_take_of_as_many_messages_as_allowed_is_recorded(broker, raw):
    line, _ = broker.open()
    raw.lpush("q", *[text_of(f"m{number}", "q") for number in range(TAKE_MAX + 1)])
    assert len(broker.take(line, ["q"], TAKE_MAX)) == TAKE_MAX
    assert len(broker.list("q")) == 1
    assert len(broker.held()) == len(broker.indexed()) == len(broker.owned(line)) == TAKE_MAX
    assert broker.renew(line) == 1
    broker.expire(line)
    assert broker.restore_dead(TAKE_MAX) == [TAKE_MAX, 1]
    assert names_of(broker.list("q")) == [f"m{number}" for number in range(TAKE_MAX + 1)]


def test_a_give_back_that_comes_after_its_line_was_lost_harms_nobody(broker):
    line, tags = hold(broker, "m")
    other, _ = broker.open(before=line, kept=tags)
    assert broker.give_back(line, (tags[0], FRONT, True, "")) == 0
    assert broker.held().keys() == {tags[0]}
    assert broker.indexed().keys() == {tags[0]}
    assert broker.owned(other) == tags


# -- beside stock kombu ------------------------------------------------------------------------------------------------


def test_stock_kombu_restores_what_is_overdue_and_reads_it(redis_url, broker):
    _, tags = hold(broker, "old", "young", queue="q", priority=3)
    broker.age(tags[0])
    with stock_channel(redis_url) as channel:
        restore_like_stock(channel)
        channel.queue_declare("q")
        message = channel.basic_get("q")
        assert message.headers == {"empty": [], "redelivered": True}
        assert message.delivery_info["redelivered"] is True
        assert message.properties["priority"] == 3
        assert message.delivery_tag == "old"
        message.ack()
        assert channel.basic_get("q") is None
    assert broker.held().keys() == broker.indexed().keys() == {tags[1]}


def test_a_late_ack_of_a_message_that_was_restored_meanwhile_harms_nobody(redis_url, broker):
    line, tags = hold(broker, "a", "b")
    broker.age(*tags)
    with stock_channel(redis_url) as channel:
        restore_like_stock(channel)
        channel.queue_declare("q")
        other, _ = broker.open()
        (again,) = broker.take(other, ["q"], 1)
        message = channel.basic_get("q")
        broker.ack(line, *tags)
        assert broker.held().keys() == broker.indexed().keys() == {again.tag, message.delivery_tag}
        assert (broker.owned(line), broker.owned(other)) == ([], [again.tag])
        assert broker.give_back(line, *[(tag, FRONT, True, "") for tag in tags]) == 0
        assert broker.list("q") == []
        message.ack()


def test_a_renewed_line_keeps_its_messages_from_stock_kombu(redis_url, broker):
    line, tags = hold(broker, "a", "b")
    broker.age(*tags)
    assert broker.renew(line, scores=False) == 1
    assert broker.indexed() == {tags[0]: 1, tags[1]: 2}
    assert broker.renew(line) == 1
    assert all(abs(score - time.time()) < 60 for score in broker.indexed().values())
    with stock_channel(redis_url) as channel:
        restore_like_stock(channel)
    assert broker.list("q") == []
    assert broker.held().keys() == set(tags)


def test_a_renewal_does_not_index_anew_what_was_restored(redis_url, broker):
    line, tags = hold(broker, "a")
    broker.age(*tags)
    with stock_channel(redis_url) as channel:
        restore_like_stock(channel)
    assert broker.owned(line) == tags
    assert broker.renew(line) == 1
    assert broker.indexed() == {}


def test_nobody_looks_for_what_is_overdue_while_stock_kombu_does(broker, raw):
    tags = left_behind(broker, "a")
    with Mutex(raw, broker.keys.mutex, 300):
        assert broker.overdue("token") is None
    assert [tag.decode() for tag, _ in broker.overdue("token")] == tags


def test_stock_kombu_restores_nothing_while_our_look_has_the_mutex(redis_url, broker):
    tags = left_behind(broker, "a")
    assert broker.overdue("token")
    with stock_channel(redis_url) as channel:
        restore_like_stock(channel)
    assert broker.list("q") == []
    assert broker.restore("token", (tags[0], "q", redelivered(text_of("a", "q")))) == 1
    assert broker.list("q") == [redelivered(text_of("a", "q"))]


def test_a_restore_whose_mutex_is_somebody_elses_by_now_leaves_it_alone(broker, raw):
    tags = left_behind(broker, "a", "b")
    assert len(broker.overdue("slow")) == 2
    raw.delete(broker.keys.mutex)
    found = broker.overdue("quick", 1)
    assert [tag.decode() for tag, _ in found] == tags[:1]
    both = [(tag, "q", text_of(name, "q")) for tag, name in zip(tags[::-1], "ba", strict=True)]
    assert broker.restore("slow", *both) == 2
    assert raw.get(broker.keys.mutex) == b"quick"
    assert broker.restore("quick", both[1]) == 0
    assert raw.exists(broker.keys.mutex) == 0
    assert names_of(broker.list("q")) == ["a", "b"]


def test_an_overdue_message_of_several_queues_goes_to_all_of_them(broker):
    tags = left_behind(broker, "a")
    broker.overdue("token")
    assert broker.restore("token", (tags[0], "one", b"1"), (tags[0], "two", b"2")) == 1
    assert (broker.list("one"), broker.list("two"), broker.held()) == ([b"1"], [b"2"], {})


def test_an_index_entry_without_a_message_is_removed(broker, raw):
    raw.zadd(broker.keys.index, {"orphan": 1})
    assert broker.overdue("token") == [(b"orphan", None)]
    assert broker.restore("token", ("orphan", None, "")) == 0
    assert broker.indexed() == {}


def taken_by_stock(broker, raw, *tags):
    """Overdue messages of a stock worker, the oldest first."""
    for score, tag in enumerate(tags, 1000):
        raw.hset(broker.keys.unacked, tag, dumps([json.loads(text_of(tag, "q")), "", "q"]))
        raw.zadd(broker.keys.index, {tag: score})


def found_of(found):
    return [tag.decode() for tag, _ in found]


def test_what_a_living_line_holds_is_not_overdue_however_late_its_renewal_is(redis_url, broker):
    """And not for stock workers either, from the first look of ours on."""
    _, tags = hold(broker, "a", "b")
    broker.age(*tags)
    assert broker.overdue("token") == []
    assert all(abs(score - time.time()) < 60 for score in broker.indexed().values())
    with stock_channel(redis_url) as channel:
        restore_like_stock(channel)
    assert broker.list("q") == []
    assert broker.held().keys() == set(tags)


def test_a_look_that_finds_only_what_the_living_hold_leaves_the_mutex_to_others(broker, raw):
    _, tags = hold(broker, "a")
    broker.age(*tags)
    assert broker.overdue("token") == []
    assert raw.exists(broker.keys.mutex) == 0


def test_what_the_next_line_of_a_process_has_taken_over_is_not_overdue(broker):
    """Its tags name the line that was lost."""
    before, tags = hold(broker, "a", "b")
    line, returned = broker.open(before, tags[:1])
    assert (returned, broker.owned(line)) == (1, tags[:1])
    broker.age(*tags)
    assert broker.overdue("token") == []
    broker.expire(line)
    broker.age(*tags)
    assert found_of(broker.overdue("token")) == tags[:1]


def test_what_a_line_alive_holds_no_more_is_overdue(broker, raw):
    line, tags = hold(broker, "a", "b")
    raw.hdel(broker.keys.owner(line), tags[0])
    broker.age(*tags)
    assert found_of(broker.overdue("token")) == tags[:1]


@pytest.mark.parametrize("most", [1, 2, 30, 100])
def test_what_stock_workers_left_behind_is_found_behind_any_number_of_older_messages_of_the_living(broker, raw, most):
    _, tags = hold(broker, *(f"m{number}" for number in range(100)))
    broker.age(*tags)
    stock = ["stock", "stock.with.dots", "line1.1.999"]
    taken_by_stock(broker, raw, *stock)
    assert found_of(broker.overdue("token", most)) == stock[:most]


def test_a_look_that_has_met_too_much_is_ended_and_the_next_one_goes_on(broker, raw):
    line, tags = hold(broker, *(f"m{number}" for number in range(3)))
    many = {f"{line}.7.{number}": number + 1 for number in range(OVERDUE_LOOKS)}
    raw.hset(broker.keys.owner(line), mapping=dict.fromkeys(many, "1|1|q"))
    raw.zadd(broker.keys.index, many)
    taken_by_stock(broker, raw, "stock")
    raw.zadd(broker.keys.index, {"stock": OVERDUE_LOOKS + 1})
    assert broker.overdue("token") == []
    assert found_of(broker.overdue("token")) == ["stock"]
    assert broker.held().keys() == {*tags, "stock"}
