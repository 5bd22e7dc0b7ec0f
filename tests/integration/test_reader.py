"""Reading result streams back from a real server."""

import itertools
import threading

import pytest
import redis

from legit_embedding.publish.errors import ResultServerError
from legit_embedding.publish.reader import PAGE_ENTRIES, StreamReader
from legit_embedding.testing.server import free_port


@pytest.fixture
def reader(redis_url):
    with StreamReader(redis_url) as opened:
        yield opened


def fill(client, stream, count, start=0):
    with client.pipeline(transaction=False) as pipeline:
        for number in range(start, start + count):
            pipeline.xadd(stream, {"n": str(number)})
        return pipeline.execute()


def numbers(entries):
    return [int(fields["n"]) for _, _, fields in entries]


def test_a_stream_is_read_from_its_first_entry_in_order(reader, client):
    ids = fill(client, "results", 3)
    assert list(reader.read(["results"], timeout_s=20, expected=3)) == [
        ("results", entry_id, {"n": str(number)}) for number, entry_id in enumerate(ids)
    ]


def test_a_stream_longer_than_a_page_is_read_whole(reader, client):
    count = 2 * PAGE_ENTRIES + 7
    fill(client, "results", count)
    assert numbers(reader.read(["results"], timeout_s=20, expected=count)) == list(range(count))


def test_several_streams_are_read_together_each_in_its_order(reader, client):
    fill(client, "a", 600)
    fill(client, "b", 5)
    found = list(reader.read(["a", "b"], timeout_s=20, expected=605))
    assert numbers(entry for entry in found if entry[0] == "a") == list(range(600))
    assert numbers(entry for entry in found if entry[0] == "b") == list(range(5))


def test_no_more_is_read_than_was_expected(reader, client):
    fill(client, "results", 10)
    assert numbers(reader.read(["results"], timeout_s=20, expected=4)) == [0, 1, 2, 3]
    assert list(reader.read(["results"], timeout_s=20, expected=0)) == []


def test_reading_ends_with_its_time(reader, client):
    fill(client, "results", 2)
    assert numbers(reader.read(["results"], timeout_s=0.05)) == [0, 1]
    assert list(reader.read(["absent"], timeout_s=0.05, expected=1)) == []
    assert list(reader.read([], timeout_s=20)) == []


def test_a_mapping_says_after_which_entry_each_stream_begins(reader, client):
    ids = fill(client, "a", 5)
    fill(client, "b", 2)
    found = list(reader.read({"a": ids[2], "b": "0"}, timeout_s=20, expected=4))
    assert numbers(entry for entry in found if entry[0] == "a") == [3, 4]


def test_from_the_end_only_what_comes_later_is_read(reader, client):
    """The end is found before the first wait: an entry that comes between two waits is not missed."""
    fill(client, "results", 3)
    entries = reader.read(["results", "new"], timeout_s=20, expected=2, from_id="$")
    later = threading.Timer(0.05, lambda: (fill(client, "results", 1, start=3), fill(client, "new", 1, start=4)))
    later.start()
    assert sorted(numbers(entries)) == [3, 4]
    later.join()


def test_an_entry_is_given_as_soon_as_it_comes_and_not_when_all_are_there(reader, client):
    entries = reader.read(["results"], timeout_s=60)
    for number in range(3):
        fill(client, "results", 1, start=number)
        assert numbers(itertools.islice(entries, 1)) == [number]


def test_the_last_id_of_a_stream(reader, client):
    assert reader.last_id("absent") == "0-0"
    assert reader.last_id("results") == "0-0"
    ids = fill(client, "results", 3)
    assert reader.last_id("results") == ids[-1]


def test_streams_are_deleted_and_counted(reader, client):
    fill(client, "a", 1)
    fill(client, "b", 1)
    assert reader.delete("a", "b", "absent") == 2
    assert reader.delete() == 0
    assert client.exists("a", "b") == 0


def test_bytes_that_are_no_utf8_are_shown_and_do_not_stop_the_reading(reader, client):
    client.execute_command("XADD", "results", "*", b"n", b"\xff1")
    (entry,) = reader.read(["results"], timeout_s=20, expected=1)
    assert entry[2] == {"n": "\ufffd1"}


def test_a_key_of_another_type_is_told(reader, client):
    client.rpush("queue", "x")
    with pytest.raises(ResultServerError, match="WRONGTYPE"):
        list(reader.read(["queue"], timeout_s=20))


def test_a_server_that_is_not_there_is_told():
    with (
        StreamReader(f"redis://127.0.0.1:{free_port()}/0") as reader,
        pytest.raises(ResultServerError, match="cannot be read"),
    ):
        reader.last_id("results")


@pytest.mark.parametrize("url", ["http://host", "redis://:secret@host:99999", "redis://:secret@host/0?foo=1"])
def test_a_url_that_cannot_be_used_is_told_without_its_password(url):
    with pytest.raises(ResultServerError, match="cannot be used") as caught:
        StreamReader(url).last_id("results")
    assert "secret" not in str(caught.value)


def test_a_second_close_does_nothing(redis_url):
    reader = StreamReader(redis_url)
    assert reader.last_id("results") == "0-0"
    reader.close()
    reader.close()


def test_a_server_that_asks_for_a_password_is_told(own_server):
    with redis.Redis.from_url(own_server.url()) as client:
        client.config_set("requirepass", "secret")
    with StreamReader(own_server.url()) as reader, pytest.raises(ResultServerError):
        reader.last_id("results")
