"""Writes `messages/`: what real Celery producers put on a queue, byte for byte.

    python tests/golden/produce.py

Celery and kombu make the messages, over kombu's in-memory broker; nothing of this project is imported. Ids are fixed,
and the two values that Celery draws anew in each process (`origin`, and the `reply_to` of its RPC backend) are replaced
by fixed ones of the same form, so that a second run changes nothing.
"""

import datetime as dt
import decimal
import json
import uuid
from pathlib import Path

from celery import Celery

FOLDER = Path(__file__).parent / "messages"
RPC_REPLY_TO = "7f8b4b9c-7a51-3d0e-9d7c-3f3a1c2b5e60"

IMAGES = "tasks.preparation.prepare_images"
PREPARED = "tasks.embedding.embed_images"
TEXTS = "tasks.text_embedding.embed_texts"

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TENSOR = {"path": "/dev/shm/prepared/17.bin", "dtype": "float32", "shape": [3, 224, 224]}

FULL = {
    "items": [
        {"id": "doc-1", "text": "A river under a stone bridge."},
        {"id": "doc-2", "text": "Señal de niebla 🌫 霧", "metadata": {"lang": "es", "tenant": 9}},
        {"text": "no id"},
    ],
    "reply_to": "search:results",
    "source": "search",
    "batch_id": "batch-2026-001",
    "model": "minilm",
    "metadata": {"tenant": 7, "nested": {"tags": ["a", "b"], "score": 0.5}},
    "options": {"dimensions": 128, "normalize": False, "prompt": "query", "truncate": False},
}
PLAIN = {"items": [{"id": "doc-1", "text": "A river under a stone bridge."}], "reply_to": "search:results"}

CASES = {
    # -- where the envelope stands, in both protocols
    "v2_positional": (TEXTS, {"args": [FULL]}),
    "v2_keyword_envelope": (TEXTS, {"kwargs": {"envelope": FULL}}),
    "v2_spread_keywords": (TEXTS, {"kwargs": FULL}),
    "v1_positional": (TEXTS, {"args": [FULL], "protocol": 1}),
    "v1_keyword_envelope": (TEXTS, {"kwargs": {"envelope": FULL}, "protocol": 1}),
    "v1_spread_keywords": (TEXTS, {"kwargs": FULL, "protocol": 1}),
    "v2_with_a_callback": (TEXTS, {"args": [PLAIN], "link": "site.tasks.notify"}),
    # -- what an item may be
    "texts_shorthand": (TEXTS, {"args": [{"texts": ["first", "second"]}]}),
    "texts_with_ids": (TEXTS, {"kwargs": {"texts": ["first", "second", "third"], "ids": ["a", 17, None]}}),
    "bare_strings": (TEXTS, {"args": [{"items": ["first", {"id": 0, "text": "second"}, "third"]}]}),
    "images_of_every_source": (
        IMAGES,
        {
            "args": [
                {
                    "items": [
                        {"id": "inline", "data": PNG, "metadata": {"page": 1}},
                        {"id": "data-url", "data": f"data:image/png;base64,{PNG}"},
                        {"id": "file", "path": "/srv/images/cat.jpg"},
                        {"id": "web", "url": "https://images.example/cat.jpg?size=640"},
                        {"id": "memory", "shm": TENSOR},
                    ],
                    "source": "crawler",
                }
            ]
        },
    ),
    "second_hop": (PREPARED, {"args": [{"items": [{"id": "memory", "shm": TENSOR}, {"id": "inline", "data": PNG}]}]}),
    # -- optional fields
    "metadata_reply_to": (
        TEXTS,
        {"args": [{"items": ["a"], "metadata": {"reply_to": "nested:results", "source": "nested", "tenant": 7}}]},
    ),
    "top_level_before_metadata": (
        TEXTS,
        {
            "args": [
                {"items": ["a"], "reply_to": "top", "source": "above", "metadata": {"reply_to": "n", "source": "n"}}
            ]
        },
    ),
    "no_reply_to": (TEXTS, {"args": [{"items": ["a"]}]}),
    "null_and_empty_fields": (
        TEXTS,
        {
            "args": [
                {
                    "items": [{"id": None, "text": "a", "data": None, "metadata": None}, {"id": "", "text": "b"}],
                    "reply_to": None,
                    "source": "",
                    "batch_id": "",
                    "model": None,
                    "metadata": None,
                    "options": None,
                }
            ]
        },
    ),
    "empty_reply_to": (TEXTS, {"args": [{"items": ["a"], "reply_to": ""}]}),
    "unknown_fields": (
        TEXTS,
        {
            "args": [
                {
                    "items": [{"text": "a", "language": "en", "weight": 2}],
                    "priority": 5,
                    "trace": {"id": "x"},
                    "options": {"dimensions": 64, "pooling": "mean"},
                }
            ]
        },
    ),
    "python_values_in_metadata": (
        TEXTS,
        {
            "args": [
                {
                    "items": [{"text": "a", "metadata": {"price": decimal.Decimal("9.90")}}],
                    "metadata": {
                        "taken": dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC),
                        "day": dt.date(2026, 3, 1),
                        "user": uuid.UUID("0c9f6a52-9a3e-4d0b-8f5f-1d2f3a4b5c6d"),
                        "digest": b"\x00\xff",
                    },
                }
            ]
        },
    ),
    "half_a_surrogate_pair": (
        TEXTS,
        {"args": [{"items": ["whole", {"id": "half", "text": "\ud83c"}], "metadata": {"title": "\ud83c"}}]},
    ),
    # -- one bad item beside good ones
    "bad_texts": (
        TEXTS,
        {
            "args": [
                {
                    "items": [
                        "good",
                        5,
                        {"id": "none"},
                        {"id": "number", "text": 5},
                        {"id": "blank", "text": "  "},
                        {"id": 1.5, "text": "id"},
                        {"id": "image", "data": PNG},
                        {"id": "two", "text": "a", "url": "https://images.example/a.jpg"},
                        {"id": "metadata", "text": "a", "metadata": ["list"]},
                        "good too",
                    ],
                }
            ]
        },
    ),
    "bad_shm": (
        PREPARED,
        {
            "args": [
                {
                    "items": [
                        {"shm": "/dev/shm/prepared/17.bin"},
                        {"shm": {**TENSOR, "shape": [3, 224]}},
                        {"shm": {**TENSOR, "shape": [3, 224, -224]}},
                        {"shm": {**TENSOR, "dtype": None}},
                        {"shm": {"dtype": "float32", "shape": [3, 224, 224]}},
                        {"shm": TENSOR},
                    ],
                }
            ]
        },
    ),
    # -- envelopes that cannot be understood
    "refused_no_items": (TEXTS, {"args": [{"reply_to": "search:results"}]}),
    "refused_items_is_an_object": (
        TEXTS,
        {"args": [{"items": {"text": "a"}, "metadata": {"reply_to": "nested:results"}}]},
    ),
    "refused_empty_items": (TEXTS, {"args": [{"items": [], "reply_to": 5}]}),
    "refused_items_and_texts": (TEXTS, {"args": [{"items": ["a"], "texts": ["a"]}]}),
    "refused_ids_of_another_length": (TEXTS, {"args": [{"texts": ["a", "b"], "ids": ["1"]}]}),
    "refused_two_arguments": (TEXTS, {"args": [PLAIN, {"reply_to": "other"}]}),
    "refused_a_list": (TEXTS, {"args": [["a", "b"]]}),
    "refused_nothing": (TEXTS, {}),
    "refused_batch_id_is_a_number": (TEXTS, {"args": [{**PLAIN, "batch_id": 17}]}),
    "refused_option": (TEXTS, {"args": [{**PLAIN, "options": {"dimensions": "128"}}]}),
    # -- a site with names of its own
    "renamed": (
        "site.embed_text",
        {
            "args": [
                {
                    "docs": [{"uid": "doc-1", "body": "A river."}, {"uid": "doc-2", "body": 5}],
                    "answer_to": "search:results",
                    "extra": {"tenant": 7},
                    "opts": {"cut": 64},
                    "items": "a field like any other here",
                }
            ]
        },
    ),
    "renamed_keyword": ("site.embed_text_v2", {"kwargs": {"batch": {"docs": ["A river."]}}}),
    "renamed_refused": (
        "site.embed_text",
        {"args": [{"docs": ["A river."], "answer_to": "search:results", "opts": {"cut": True}}]},
    ),
}


def main():
    """Sends every case and writes down what lies on the queue then."""
    producers = {protocol: Celery(broker="memory://", set_as_current=False) for protocol in (1, 2)}
    for protocol, app in producers.items():
        app.conf.task_protocol = protocol
    FOLDER.mkdir(exist_ok=True)
    for number, (name, (task, how)) in enumerate(CASES.items(), start=1):
        options = dict(how)
        app = producers[options.pop("protocol", 2)]
        link = options.pop("link", None)
        app.send_task(
            task,
            task_id=f"00000000-0000-4000-8000-{number:012}",
            queue="golden",
            link=app.signature(link, task_id="00000000-0000-4000-9000-000000000000") if link else None,
            **options,
        )
        text = json.dumps(take(app), indent=2, ensure_ascii=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def take(app):
    """The one message on the queue."""
    with app.connection_for_read() as connection, connection.SimpleQueue("golden") as queue:
        message = queue.get(block=False)
        message.ack()
    headers = {name: value for name, value in message.headers.items() if value is not None}
    if "origin" in headers:
        headers["origin"] = "gen1@producer"
    uuid.UUID(message.properties["reply_to"])  # Celery sets it, whatever the task asks for
    return {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": headers,
        "properties": {"correlation_id": message.properties["correlation_id"], "reply_to": RPC_REPLY_TO},
        "body": message.body if isinstance(message.body, str) else message.body.decode(),
    }


if __name__ == "__main__":
    main()
