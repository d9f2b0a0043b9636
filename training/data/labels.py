"""What of a conversation is learned: the answers and their terminators, token by token (LLMGA.md §7.2).

The original finds them by counting tokens, in another way for each family. Here the ids of the conversation are
compared with those of its beginnings, all made by the code of serving: what the model is given when it has to answer a
turn is not learned, what it has to write then is. Should the tokens of a beginning not be those of the whole, which
happens where text grows together across the border, nothing of the conversation is learned, as in the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.mllm.conversation import Turn
from services.mllm.tokenization import PromptBuilder

IGNORED = -100


@dataclass(frozen=True)
class Labeled:
    """Ids of a conversation, with `IMAGE_ID` for its picture, and as many labels: the id, or `IGNORED`."""

    ids: list[int]
    labels: list[int]

    @property
    def is_learned(self) -> bool:
        """Return whether anything of it is."""
        return any(label != IGNORED for label in self.labels)


def labeled(builder: PromptBuilder, turns: Sequence[Turn], *, has_image: bool) -> Labeled:
    """Return the ids and labels of a conversation whose every turn is answered."""
    ids = builder.build(turns, has_image=has_image).token_ids
    labels = [IGNORED] * len(ids)
    for index, turn in enumerate(turns):
        asked = builder.build([*turns[:index], Turn(turn.question)], has_image=has_image).token_ids
        is_last = index == len(turns) - 1
        answered = ids if is_last else builder.build(turns[: index + 1], has_image=has_image).token_ids
        start, end = len(asked), len(answered)
        if ids[:start] != asked or ids[:end] != answered:
            return Labeled(ids, [IGNORED] * len(ids))
        labels[start:end] = ids[start:end]
    return Labeled(ids, labels)
