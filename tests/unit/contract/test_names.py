"""A site's own names: read once, checked at the start, clear about what is wrong."""

import pytest

from legit_embedding.contract.names import (
    EMBED_IMAGES,
    EMBED_TEXTS,
    ENVELOPE_FIELDS,
    PREPARE_IMAGES,
    RESULT_FIELDS,
    TASK_KINDS,
    Names,
)
from legit_embedding.contract.result import ResultEntry
from legit_embedding.errors import ConfigurationError


def problem(tables):
    """What a set of tables is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        Names.from_tables(tables)
    return str(caught.value)


@pytest.fixture
def written(tmp_path):
    """Writes rename tables and gives their path."""

    def write(content):
        path = tmp_path / "contract.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_without_a_file_every_name_is_its_own():
    names = Names.load(None)
    assert names.tasks == {task: (task,) for task in TASK_KINDS}
    for table in (names.queues, names.envelope, names.result):
        assert table == {name: name for name in table}


def test_the_tasks_have_the_names_and_queues_that_producers_use():
    names = Names()
    assert {task: names.queue_of(task) for task in names.tasks} == {
        "tasks.preparation.prepare_images": "image_preparation",
        "tasks.embedding.embed_images": "image_embedding",
        "tasks.text_embedding.embed_texts": "text_embedding",
    }
    assert TASK_KINDS == {PREPARE_IMAGES: "images", EMBED_IMAGES: "prepared_images", EMBED_TEXTS: "texts"}


def test_every_field_that_a_reader_knows_can_be_renamed():
    assert set(RESULT_FIELDS) == {"v", *ResultEntry.__dataclass_fields__}


def test_a_file_renames_what_it_names_and_nothing_else(written):
    path = written(
        f"""
        [tasks]
        "{EMBED_TEXTS}" = "site.embed"
        "{PREPARE_IMAGES}" = ["site.images", "site.images_v2"]
        [queues]
        text_embedding = "texts"
        [envelope]
        reply_to = "answer_to"
        [result]
        embedding = "vector"
        """
    )
    names = Names.load(path)
    assert names.tasks == {
        EMBED_TEXTS: ("site.embed",),
        PREPARE_IMAGES: ("site.images", "site.images_v2"),
        EMBED_IMAGES: (EMBED_IMAGES,),
    }
    assert names.queue_of(EMBED_TEXTS) == "texts"
    assert (names.envelope["reply_to"], names.envelope["items"]) == ("answer_to", "items")
    assert (names.result["embedding"], names.result["dim"]) == ("vector", "dim")


def test_a_file_is_read_once(written):
    path = written('[queues]\ntext_embedding = "first"')
    first = Names.load(path)
    written('[queues]\ntext_embedding = "second"')
    assert Names.load(path) is first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[queues", "table declaration"),
        (b"[queues]\ntext_embedding = '\xff'", "utf-8"),
        ("[queue]", "unknown table: 'queue'; there are queues"),
        ('[queues]\ntext_embeding = "x"', "unknown name in [queues]: 'text_embeding'; there are text_embedding"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(written, content, said):
    path = written(content)
    with pytest.raises(ConfigurationError) as caught:
        Names.load(path)
    assert str(caught.value).startswith(f"LEGIT_CONTRACT={path}: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigurationError, match=str(path)):
            Names.load(path)


@pytest.mark.parametrize(
    ("table", "name"),
    [("tasks", "tasks.embed"), ("queues", "celery"), ("envelope", "item"), ("result", "vector")],
)
def test_an_unknown_canonical_name_is_named(table, name):
    assert f"unknown name in [{table}]: {name!r}" in problem({table: {name: "x"}})


@pytest.mark.parametrize("value", ["", 5, ["a"], None, {"a": "b"}])
def test_a_deployed_name_is_a_string(value):
    assert problem({"envelope": {"items": value}}) == f"[envelope] items must be a non-empty string, not {value!r}"


@pytest.mark.parametrize("value", ["", [], ["a", ""], ["a", 5], 5, {"a": "b"}])
def test_a_task_has_a_name_or_a_list_of_names(value):
    assert "must be a name or a list of names" in problem({"tasks": {EMBED_TEXTS: value}})


def test_a_table_is_a_table():
    assert problem({"queues": "image_preparation"}).startswith("[queues] must be a table")


@pytest.mark.parametrize(
    ("tables", "name"),
    [
        ({"tasks": {EMBED_TEXTS: EMBED_IMAGES}}, EMBED_IMAGES),
        ({"tasks": {EMBED_TEXTS: ["a", "b"], EMBED_IMAGES: "b"}}, "b"),
        ({"tasks": {EMBED_TEXTS: ["a", "a"]}}, "a"),
        ({"queues": {"text_embedding": "image_embedding"}}, "image_embedding"),
        ({"result": {"dim": "dtype"}}, "dtype"),
        ({"envelope": {"texts": "items"}}, "items"),
        ({"envelope": {"items": "envelope"}}, "envelope"),
        ({"envelope": {"id": "metadata"}}, "metadata"),
        ({"envelope": {"shape": "dtype"}}, "dtype"),
        ({"envelope": {"prompt": "truncate"}}, "truncate"),
    ],
)
def test_one_deployed_name_stands_for_one_thing(tables, name):
    (table,) = tables
    assert problem(tables) == f"[{table}] gives the name {name!r} to two things"


def test_a_field_of_an_item_may_be_called_as_one_of_its_envelope():
    """They stand in different objects."""
    names = Names.from_tables({"envelope": {"id": "batch_id", "text": "source", "prompt": "model"}})
    assert names.envelope["id"] == names.envelope["batch_id"]


def test_two_names_can_be_exchanged():
    swapped = Names.from_tables({"envelope": {"items": "texts", "texts": "items"}}).envelope
    assert (swapped["items"], swapped["texts"]) == ("texts", "items")
    assert set(swapped) >= set(ENVELOPE_FIELDS)
