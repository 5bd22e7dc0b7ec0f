"""Batches across tasks: `policy` decides who goes when (pure), `batcher` awaits and wakes."""

from legit_embedding.batching.batcher import Batcher, BatcherStatistics, BatchTarget
from legit_embedding.batching.policy import Ticket

__all__ = ["BatchTarget", "Batcher", "BatcherStatistics", "Ticket"]
