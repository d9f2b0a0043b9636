"""What becomes of an item that cannot be used: it stops the run, or the next one takes its place and it is counted."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from training.data.formats import DataError, OnError

T = TypeVar("T")
SKIPPED = "skipped"
_TRIES = 100  # positions in a row that cannot be used; then the data are broken as a whole
_SHOWN = 3  # warnings; the rest is counted

_log = logging.getLogger("llmga.training")
_lock = threading.Lock()  # examples are made in threads


def first_usable(read: Callable[[int], T], position: int, length: int, on_error: OnError, counts: Counter[str]) -> T:
    """Return what `read` makes of a position, or with "skip" of the first one after it that can be used.

    counts: where those that are passed over are counted, as `SKIPPED`.

    Raises:
        DataError: the item cannot be used and that stops the run, or so are all the following.
    """
    for attempt in range(_TRIES):
        try:
            return read((position + attempt) % length)
        except DataError as error:
            if on_error == "stop":
                raise
            with _lock:
                counts[SKIPPED] += 1
                is_shown = counts[SKIPPED] <= _SHOWN
            if is_shown:
                _log.warning("skipped: %s", error)
    raise DataError(f"{_TRIES} items in a row cannot be used; the warnings above name the first of them")
