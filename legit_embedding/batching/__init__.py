"""Batches across tasks: `policy` decides who goes when (pure), `batcher` awaits and wakes; `preparing` comes before."""

from legit_embedding.batching.batcher import Batcher, BatcherStatistics, BatchTarget
from legit_embedding.batching.policy import Ticket
from legit_embedding.batching.preparing import Preparer

__all__ = ["BatchTarget", "Batcher", "BatcherStatistics", "Preparer", "Ticket"]
