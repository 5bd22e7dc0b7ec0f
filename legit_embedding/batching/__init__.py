"""Batches across tasks: `policy` decides who goes when (pure), `batcher` awaits and wakes; `turns` for the rest."""

from legit_embedding.batching.batcher import Batcher, BatcherStatistics, BatchTarget
from legit_embedding.batching.policy import Ticket
from legit_embedding.batching.turns import Turns

__all__ = ["BatchTarget", "Batcher", "BatcherStatistics", "Ticket", "Turns"]
