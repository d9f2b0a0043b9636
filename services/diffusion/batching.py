"""Which requests the next UNet call takes: pure functions over what waits.

Requests can share a call when their batch keys are equal; steps, step index, scheduler, guidance and seed are
not in the key. The call goes to the key of the request that has waited longest; behind that request it is filled with
those of the key that have had no step yet, then with the others in the order of their waiting. So every request gets
one step per round, and none waits for more calls than one round takes: the sum over the keys of their rows divided by
the rows of their calls, rounded up, and what newcomers add. Interactive requests go before batch ones, which ride along
in free rows; a batch request that was passed over for `PATIENCE_CALLS` counts as interactive for one step, so batch
work never stops.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

PATIENCE_CALLS = 16
MIN_BUCKET = 2  # a guided request alone; one row is computed in another way (CPU, measured)
MOST_ROWS = 4  # of one request: an edit's
GAIN = 1.05  # rows per second of a call that leaves some out, over those of one with room for all


class BatchKey(NamedTuple):
    """What the requests of one UNet call have in common."""

    model: str
    unet_channels: int
    height: int
    width: int
    tokens: int
    dtype: str
    fixed_bucket: bool
    adapters: tuple[Hashable, ...] = ()


class Waiting(Protocol):
    """A request that wants a step; `waiting_since` is the number of the call that it took part in last, if it has."""

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def is_interactive(self) -> bool: ...
    @property
    def waiting_since(self) -> int: ...
    @property
    def has_begun(self) -> bool: ...


W = TypeVar("W", bound=Waiting)


def choose(waiting: Sequence[W], call: int, room: Callable[[BatchKey, int], int]) -> list[W]:
    """Return the requests for call number `call`, at least one of those that wait; order breaks ties.

    `room`: the rows of a call of some key when so many of its rows wait.
    """

    def is_due(request: W) -> bool:
        return request.is_interactive or call - request.waiting_since > PATIENCE_CALLS

    ranked = sorted(waiting, key=lambda request: (not is_due(request), request.waiting_since))
    first = ranked[0]
    alike = [request for request in ranked if request.key == first.key]
    alike.sort(key=lambda request: (request is not first, not is_due(request), request.has_begun))
    free = room(first.key, sum(request.rows for request in alike))
    chosen: list[W] = []
    for request in alike:
        if request.rows <= free or not chosen:
            chosen.append(request)
            free -= request.rows
    return chosen


class Buckets:
    """The numbers of rows that calls are padded to.

    `stable` are those among which a row's result has the same bits, wherever it stands and whatever stands
    beside it; only they may serve the deterministic class. `call_s`: the seconds of their calls, where they are known.
    """

    def __init__(
        self, sizes: Sequence[int], stable: Sequence[int] | None = None, call_s: Mapping[int, float] | None = None
    ) -> None:
        self.sizes = tuple(sorted(sizes))
        self.stable = self.sizes if stable is None else tuple(sorted(stable))
        self.call_s = call_s

    @classmethod
    def up_to(cls, max_rows: int) -> "Buckets":
        """Return the buckets 2, 4, 8, 16 … that are not above `max_rows`."""
        sizes = [MIN_BUCKET]
        while sizes[-1] * 2 <= max_rows:
            sizes.append(sizes[-1] * 2)
        return cls(sizes)

    @property
    def is_stable(self) -> bool:
        """Whether every bucket may serve the deterministic class."""
        return self.stable == self.sizes

    def of(self, key: BatchKey) -> tuple[int, ...]:
        """Return the buckets that calls of this key may have."""
        return self.stable if key.fixed_bucket else self.sizes

    def room(self, rows: int, sizes: Sequence[int]) -> int:
        """Return which of these buckets a call has when so many rows wait: one for all of them, or the largest.

        A smaller one, if it gets clearly more of the rows done in its time: 18 rows would make half of 32 idle.
        """
        fitting = next((size for size in sizes if size >= rows), sizes[-1])
        if self.call_s is None:
            return fitting
        per_s = {size: min(size, rows) / self.call_s[size] for size in sizes if size <= fitting}
        best = max(per_s, key=lambda size: per_s[size])
        return best if per_s[best] > GAIN * per_s[fitting] else fitting
