"""From encoded conversations to the tensors of one forward pass (LLMGA.md §1.8, §7.2).

The picture's tokens take the place of its one id, then everything is cut to the model's length at its end and padded on
the right. The attention mask follows from the lengths: the original's, ids that are not the padding id, also hides the
unknown words of Vicuna and Mistral, whose padding is `<unk>`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.data.formats import DataError
from training.data.labels import IGNORED, Labeled
from training.data.tokens import IMAGE_ID
from training.runs import Batch


@dataclass(frozen=True)
class Encoded:
    """A conversation's ids and labels, and its picture as the tower takes it: float32 (3, side, side)."""

    text: Labeled
    picture: torch.Tensor | None


@dataclass(frozen=True)
class Collator:
    """Make batches.

    image_tokens: positions of one picture. max_length: of a conversation, with its picture. side: the tower's pixels.
    """

    image_tokens: int
    max_length: int
    side: int

    def __post_init__(self) -> None:
        if self.max_length <= self.image_tokens:
            raise DataError(f"a picture takes {self.image_tokens} tokens, and max_length is {self.max_length}")

    def __call__(self, conversations: Sequence[Encoded], seeds: Sequence[int]) -> Batch:
        """Return `ids`, `labels` and `attention_mask`: int64 (b, length), and `pixel_values`: float32 (pictures, 3,
        side, side), of the rows that have `IMAGE_ID`, in their order; one black picture if none has.
        """
        rows = [self._expanded(conversation.text) for conversation in conversations]
        length = max(len(ids) for ids, _ in rows)
        ids, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), IGNORED)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        for row, (row_ids, row_labels) in enumerate(rows):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            labels[row, : len(row_ids)] = torch.tensor(row_labels)
            attention_mask[row, : len(row_ids)] = 1
        pictures = [conversation.picture for conversation in conversations if conversation.picture is not None]
        # The projector takes part in every forward pass: processes that add up gradients wait for each other there.
        pictures = pictures or [torch.zeros(3, self.side, self.side)]
        return {"ids": ids, "labels": labels, "attention_mask": attention_mask, "pixel_values": torch.stack(pictures)}

    def _expanded(self, text: Labeled) -> tuple[list[int], list[int]]:
        ids, labels = text.ids, text.labels
        if IMAGE_ID in ids:
            at = ids.index(IMAGE_ID)
            if at + self.image_tokens > self.max_length:
                raise DataError(f"what goes before the picture leaves no room for it in {self.max_length} tokens")
            ids = [*ids[:at], *[IMAGE_ID] * self.image_tokens, *ids[at + 1 :]]
            labels = [*labels[:at], *[IGNORED] * self.image_tokens, *labels[at + 1 :]]
        return ids[: self.max_length], labels[: self.max_length]


def learned_tokens(batch: Batch) -> float:
    """Return how many tokens of a batch are learned: its weight in the mean loss. The first has nothing before it."""
    return float((batch["labels"][:, 1:] != IGNORED).sum())
