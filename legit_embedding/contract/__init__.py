"""The wire: what producers send and what consumers read, both ways. Pure; nothing else knows these names."""

from legit_embedding.contract.envelope import parse_envelope, salvage_reply_to
from legit_embedding.contract.names import EMBED_IMAGES, EMBED_TEXTS, PREPARE_IMAGES, Names
from legit_embedding.contract.result import EntryTemplate, ResultEntry, TaskResult, dead_letter, parse_entry

__all__ = [
    "EMBED_IMAGES",
    "EMBED_TEXTS",
    "PREPARE_IMAGES",
    "EntryTemplate",
    "Names",
    "ResultEntry",
    "TaskResult",
    "dead_letter",
    "parse_entry",
    "parse_envelope",
    "salvage_reply_to",
]
