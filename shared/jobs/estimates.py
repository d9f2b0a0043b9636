"""When a job will have ended, judged by jobs like it that ended of late.

The work of a job is known in cost units, and each stage remembers (`learn` in `lua/prelude.lua`) how long jobs took and
how many units they had, for all of them and per batch key, with weights that fall exponentially. A job's own work takes
its units times the ms per unit of its like. What must be done before it takes the mean time of a job for each that
comes first, shared among as many as run at the same time now (Little 1961: throughput is concurrency over time). Time
in a batch is measured as it was, neighbours and all, so no model of the batching is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """A stage as a job finds it.

    `earlier`: jobs in its queue that go first; `running`: jobs that workers have, this one too if it is with one.
    `mean_ms` of a job there of late, `ms_per_unit` (thousandth of a cost unit) of jobs like this one; 0 when unknown.
    """

    earlier: int
    running: int
    mean_ms: float
    ms_per_unit: float

    def wait_ms(self, ahead: int) -> float:
        """Return the time until a job starts that has `ahead` others before it, besides those that run.

        Of what runs, one half is left on average.
        """
        return (ahead + (0.5 if self.running else 0)) * self.mean_ms / max(1, self.running)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an estimate rests on: the stages that a job has before it, the present one first, and the ms for which it
    has been running (None: it waits)."""

    loads: Sequence[Load]
    elapsed_ms: int | None


def remaining_ms(outlook: Outlook, units: Sequence[int], done: float = 0.0) -> float | None:
    """Return the time until a job has come through its stages, None when nothing is known of one of them.

    `units`: thousandths of cost units of its work in each stage that it will pass; `done`: share of the present one's
    that is known to be done.
    """
    stages = list(zip(outlook.loads, units, strict=False))
    if not stages or any(load.ms_per_unit <= 0 or work <= 0 for load, work in stages):
        return None
    here, work = stages[0]
    own_ms = here.ms_per_unit * work
    if outlook.elapsed_ms is None:
        end_ms = here.wait_ms(here.earlier) + own_ms
        ahead = here.earlier + here.running
    else:
        end_ms = own_ms * (1 - done) if done else max(0.0, own_ms - outlook.elapsed_ms)
        ahead = here.running - 1
    for load, later in stages[1:]:
        ahead += load.earlier  # whoever is before it here will be before it there, too
        if ahead:  # that work goes on while this one's is done
            end_ms = max(end_ms, load.wait_ms(ahead))
        end_ms += load.ms_per_unit * later
    return end_ms
