"""Several sets of items as one, shuffled together in their natural sizes (LLMGA.md §7.2)."""

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
from training.data.formats import Item, OnError
from training.data.labels import labeled
from training.data.pictures import TowerInput
from training.data.skipping import first_usable


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
        return first_usable(lambda at: self._encoded(at, seed), position, len(self), self._on_error, self.counts)

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
