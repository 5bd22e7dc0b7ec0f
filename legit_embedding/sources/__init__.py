"""Where an item's bytes come from: inline, a file, a URL, shared memory. Nothing is open unless a setting opens it."""

from legit_embedding.sources.reader import Sources

__all__ = ["Sources"]
