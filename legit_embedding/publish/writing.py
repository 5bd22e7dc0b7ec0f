"""Pipelines of XADD, several under way at once, and what becomes of each entry."""

from collections.abc import Callable, Sequence

from legit_embedding.config import StreamConfig
from legit_embedding.publish.hold import Hold
from legit_embedding.publish.outcomes import Refused, Scope, Trouble
from legit_embedding.publish.pending import Backlog, Entry, Sorted, sort_replies
from legit_embedding.publish.wire import Command, Wire
from legit_embedding.values import Receipt

PIPELINE_BYTES = 4 * 1024 * 1024
"""One pipeline carries at most this much: more would keep its replies waiting behind the transfer."""

PROBE_ENTRIES = 16
"""While the server is in trouble a pipeline carries this many: an unknown outcome may leave each of them twice."""


class StreamWriter:
    """Takes what is ready and writes it. Run `run` once for each connection.

    `wires` are all connections to the server: they are opened anew where another server may answer there now.
    `confirmed` is called for each entry that the server has, `refused` for each that its stream will never take, and
    `changed` after each pipeline. Everything else is kept and written again.
    """

    def __init__(
        self,
        *,
        stream: StreamConfig,
        max_entries: int,
        wires: Sequence[Wire],
        backlog: Backlog,
        hold: Hold,
        confirmed: Callable[[Entry, Receipt], None],
        refused: Callable[[Entry, Refused, Exception], None],
        changed: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._max_entries = max_entries
        self._wires = tuple(wires)
        self._backlog = backlog
        self._hold = hold
        self._confirmed = confirmed
        self._refused = refused
        self._changed = changed
        self.pipelines = 0
        self.retried = 0

    async def run(self, wire: Wire) -> None:
        """Writes over `wire`, until it is cancelled."""
        while True:
            await self._backlog.wait()
            async with self._hold.turn():
                limit = self._max_entries if self._hold.trouble is None else min(PROBE_ENTRIES, self._max_entries)
                batch = self._backlog.take(max_entries=limit, max_bytes=PIPELINE_BYTES)
                if batch:
                    await self._commit(wire, batch)
                    self._changed()

    async def _commit(self, wire: Wire, batch: list[Entry]) -> None:
        self.pipelines += 1
        try:
            replies = await wire.execute([self._command(entry) for entry in batch])
            self._settle(sort_replies(batch, replies, global_stream=self._stream.stream))
        except Exception as error:  # noqa: BLE001  a bug of ours must not cost an entry: it is kept, tried again, told
            self._backlog.put_back([entry for entry in batch if not entry.is_confirmed])
            self._hold.fail(Trouble("internal", Scope.LINE), error)
        finally:
            self.pipelines -= 1

    def _command(self, entry: Entry) -> Command:
        if self._stream.maxlen is None:
            return ("XADD", entry.stream, "*", *entry.fields)
        how = "~" if self._stream.approximate else "="
        return ("XADD", entry.stream, "MAXLEN", how, self._stream.maxlen, "*", *entry.fields)

    def _settle(self, outcome: Sorted) -> None:
        for entry, receipt in outcome.confirmed:
            self._confirmed(entry, receipt)
        for entry, why, refusal in outcome.refused:
            self._refused(entry, why, refusal)
        if outcome.troubled:
            self._keep(outcome)
        elif outcome.confirmed:
            self._hold.prove(self._proven(outcome))

    def _proven(self, outcome: Sorted) -> Scope:
        on_global = any(receipt.stream == self._stream.stream for _, receipt in outcome.confirmed)
        return Scope.GLOBAL_STREAM if on_global else Scope.WRITES

    def _keep(self, outcome: Sorted) -> None:
        """Entries that met a trouble go back, and the trouble is waited out."""
        self.retried += len(outcome.troubled)
        self._backlog.put_back([entry for entry, trouble, _ in outcome.troubled if trouble.scope is Scope.LINE])
        # After the others: what the server refuses one by one must not stand before what it would take.
        self._backlog.add([entry for entry, trouble, _ in outcome.troubled if trouble.scope is not Scope.LINE])
        _, worst, error = max(outcome.troubled, key=lambda each: each[1].scope)
        if worst.reconnect:
            for wire in self._wires:
                wire.expire()
        self._hold.fail(worst, error, proven=self._proven(outcome) if outcome.confirmed else None)
