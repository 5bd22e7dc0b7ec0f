"""Whether plain tasks wait for a thread that is at work, or wake one more: the decision alone.

Python lets one thread run at a time, and each that reads or writes a socket hands its turn to another that waits for
one. Where that is what the worker runs short of, one more thread makes nothing faster, and each change from thread to
thread costs all of them. Where it is not, a call that waits for a thread at work has waited for nothing.
"""

SCARCE, PARALLEL = 0.75, 1.3
"""Between which shares of a core, used by the consumer's thread and the tasks', more threads at work gain nothing.

Null tasks use 0.9 to 1.15 under kombu's transport, bodies that block for a millisecond half a core at the most. Bodies
that compute without the interpreter's lock (images, numpy) use more than one core in several threads.
"""

LOOK_S = 0.005
"""Between looks while calls wait; one that must not wait has waited for two of them at the most."""

PAUSE_S = 0.05
"""Between looks while none wait, and without patience after it has failed."""

LONGEST_PAUSE_S = 10.0
PROOF_S = 1.0
"""How long patience must have done well for the next failure to count as the first."""

SPELL_S = 1.0
"""After this long without a break it lets go for one pause: with one thread at work nobody knows whether several would
compute side by side."""


class Patience:
    """Holds back while the consumer's and the tasks' threads use up a core and no more, until a call is late.

    One is late where those at work block, or compute for long. Then nothing is held back for a while, which doubles
    where it happens again soon: what waits for nothing does so for a hundredth of the time at the most.
    """

    def __init__(self) -> None:
        self.holds = False
        self.next_look_s = PAUSE_S
        self._pause_s = PAUSE_S
        self._lasted_s = PROOF_S  # since the last failure
        self._spell_s = 0.0

    def look(self, *, elapsed_s: float, cpu_s: float, late: bool, idle: bool) -> bool:
        """Whether calls are held back from now on.

        Args:
            elapsed_s: the time since the last look.
            cpu_s: what the threads have used of it, together.
            late: a call waits since before the last look.
            idle: none has been offered since, and none waits.
        """
        scarce = SCARCE * elapsed_s <= cpu_s <= PARALLEL * elapsed_s
        failed = self.holds and late
        if self.holds:
            self._lasted_s += elapsed_s
            self._spell_s += elapsed_s
        if failed:
            self._pause_s = PAUSE_S if self._lasted_s >= PROOF_S else min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._lasted_s = 0.0
        self.holds = scarce and not late and not idle and self._spell_s < SPELL_S
        if not self.holds:
            self._spell_s = 0.0
        self.next_look_s = LOOK_S if self.holds else self._pause_s if failed else PAUSE_S
        return self.holds
