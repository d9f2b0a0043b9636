"""Several sets of items as one, shuffled together in their natural sizes (LLMGA.md §7.2)."""

import logging
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from services.mllm.tokenization import PromptBuilder
from training.data.collator import Encoded
from training.data.conversations import Rules, conversation_of
from training.data.formats import DataError, Item, OnError
from training.data.labels import labeled
from training.data.pictures import TowerInput

_TRIES = 100  # positions in a row that cannot be used; then the data are broken as a whole

_log = logging.getLogger("llmga.training")


class Items(Protocol):
    """A numbered set of items; what is random about one comes from the seed."""

    def __len__(self) -> int: ...

    def item(self, index: int, seed: int) -> Item:
        """Return an item."""
        ...


class Mixture:
    """Encoded conversations of all sets, as `training.runs` takes them.

    A picture that turns out to be damaged stops the run, or its place is taken by the next item (`on_error`). `counts`
    has what happened: `skipped` pictures, conversations that were `cut`, and those that are `unlearned` because their
    tokens do not match.
    """

    def __init__(
        self,
        sets: Sequence[Items],
        builder: PromptBuilder,
        rules: Rules,
        tower: TowerInput,
        *,
        image_tokens: int,
        max_length: int,
        on_error: OnError = "stop",
    ) -> None:
        self._sets, self._builder, self._rules, self._tower = sets, builder, rules, tower
        self._image_tokens, self._max_length, self._on_error = image_tokens, max_length, on_error
        self._ends = list(accumulate(len(each) for each in sets))
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def example(self, position: int, seed: int) -> Encoded:
        """Return the conversation at a position, as drawn with this seed.

        Raises:
            DataError: its picture cannot be used and that stops the run, or so are all the following.
        """
        for attempt in range(_TRIES):
            try:
                return self._encoded((position + attempt) % len(self), seed)
            except DataError as error:
                if self._on_error == "stop":
                    raise
                self._count("skipped")
                if self.counts["skipped"] <= 3:
                    _log.warning("skipped: %s", error)
        raise DataError(f"{_TRIES} items in a row cannot be used; the warnings above name the first of them")

    def _encoded(self, position: int, seed: int) -> Encoded:
        number = bisect_right(self._ends, position)
        item = self._sets[number].item(position - (self._ends[number - 1] if number else 0), seed)
        conversation = conversation_of(item, np.random.default_rng(seed), self._rules)
        text = labeled(self._builder, conversation.turns, has_image=conversation.pixels is not None)
        if not text.is_learned:
            self._count("unlearned")
        if len(text.ids) + (self._image_tokens - 1) * (conversation.pixels is not None) > self._max_length:
            self._count("cut")
        return Encoded(text, None if conversation.pixels is None else self._tower.values(conversation.pixels))

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
