"""Which requests the next UNet call takes: pure functions over what waits.

Requests can share a call when their batch keys are equal; steps, step index, scheduler, guidance and seed are
not in the key. The call goes to the key of the request that has waited longest, and is filled with that key's
requests in the same order. So every request gets one step per round, and none waits for more calls than one
round takes: the sum over the keys of their rows divided by `max_rows`, rounded up. Interactive requests go
before batch ones, which ride along in free rows; a batch request that was passed over for `PATIENCE_CALLS`
counts as interactive for one step, so batch work never stops.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

PATIENCE_CALLS = 16
MIN_BUCKET = 4  # rows of smaller calls differ in their last bits from those of larger ones (CPU, measured)


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
    """A request that wants a step; `waiting_since` is the number of the call that it took part in last."""

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def is_interactive(self) -> bool: ...
    @property
    def waiting_since(self) -> int: ...


W = TypeVar("W", bound=Waiting)


def choose(waiting: Sequence[W], call: int, max_rows: Callable[[BatchKey], int]) -> list[W]:
    """Return the requests for call number `call`, at least one of those that wait; order breaks ties."""

    def rank(request: W) -> tuple[bool, int]:
        is_due = request.is_interactive or call - request.waiting_since > PATIENCE_CALLS
        return not is_due, request.waiting_since

    ranked = sorted(waiting, key=rank)
    key = ranked[0].key
    free = max_rows(key)
    chosen: list[W] = []
    for request in ranked:
        if request.key == key and (request.rows <= free or not chosen):
            chosen.append(request)
            free -= request.rows
    return chosen


class Buckets:
    """The numbers of rows that calls are padded to.

    `stable` are those among which a row's result has the same bits, wherever it stands and whatever stands
    beside it; only they may serve the deterministic class.
    """

    def __init__(self, sizes: Sequence[int], stable: Sequence[int] | None = None) -> None:
        self.sizes = tuple(sorted(sizes))
        self.stable = self.sizes if stable is None else tuple(sorted(stable))

    @classmethod
    def up_to(cls, max_rows: int) -> "Buckets":
        """Return the buckets 4, 8, 16 … that are not above `max_rows`."""
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
