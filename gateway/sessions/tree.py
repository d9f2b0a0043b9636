"""The tree of a session's turns: the way to a turn, and what lies on it. Pure."""

from collections.abc import Sequence

from gateway.sessions.references import ordinal_in, place_of
from shared.contracts import TERMINAL, HistoryTurn, JobStatus
from shared.contracts.generation import MAX_HISTORY_TURNS
from shared.contracts.sessions import ROOT, PictureReference, PictureSource, Session, Turn

# LLMGA's context of 2,048 tokens holds half of this in English; a job's record has room for it beside its own words.
MAX_HISTORY_BYTES = 16_384


def turn_of(session: Session, number: int) -> Turn | None:
    """Return a turn by its number."""
    return session.turns[number - 1] if 1 <= number <= len(session.turns) else None


def path_to(session: Session, turn: Turn | None) -> list[Turn]:
    """Return the turns from the beginning to this one, which is the last; none for the root."""
    path: list[Turn] = []
    while turn is not None:
        path.append(turn)
        turn = turn_of(session, turn.parent or ROOT)
    return path[::-1]


def is_under_way(turn: Turn) -> bool:
    """Whether more can become of the turn."""
    return turn.status not in TERMINAL


def latest_picture(path: Sequence[Turn]) -> PictureReference | None:
    """Return the first picture of the latest turn on the path that made any."""
    return next((PictureReference(turn=turn.id) for turn in reversed(path) if turn.images), None)


def picture_by_words(path: Sequence[Turn], text: str) -> PictureReference | None:
    """Return the picture on the path that a text means.

    Ordinals count the pictures of the latest turn that made any, if those are several and so many; otherwise all of
    the path, in order.
    """
    ordinal = ordinal_in(text)
    if ordinal is None:
        return None
    turns = [[PictureReference(turn=turn.id, index=image.index) for image in turn.images] for turn in path]
    made = [pictures for pictures in turns if pictures]
    every = [picture for pictures in made for picture in pictures]
    for pictures in (made[-1] if made and len(made[-1]) > 1 else [], every):
        place = place_of(ordinal, len(pictures))
        if place is not None:
            return pictures[place]
    return None


def image_of(session: Session, reference: PictureReference) -> str | None:
    """Return the id of a session's picture, None when there is none such."""
    turn = turn_of(session, reference.turn)
    return next((image.id for image in turn.images if image.index == reference.index), None) if turn else None


def pictures_of(session: Session) -> set[str]:
    """Return the ids of all pictures that a session has made, or was given."""
    made = [image for turn in session.turns for image in turn.images]
    given = [given for turn in session.turns for given in (turn.request.image, turn.request.mask)]
    beside = [artifact.id for image in made for artifact in image.artifacts]
    return {image_id for image_id in (*(image.id for image in made), *given, *beside) if image_id is not None}


def source_of(
    session: Session, path: Sequence[Turn], text: str, explicit: PictureReference | None
) -> PictureSource | None:
    """Return the picture that a turn after this path is about, and how it was found."""
    if explicit is not None:
        return PictureSource(turn=explicit.turn, index=explicit.index, chosen_by="client")
    by_words = picture_by_words(path, text)
    if by_words is not None:
        return PictureSource(turn=by_words.turn, index=by_words.index, chosen_by="words")
    latest = latest_picture(path)
    return None if latest is None else PictureSource(turn=latest.turn, index=latest.index, chosen_by="latest")


def told(path: Sequence[Turn]) -> tuple[list[int], tuple[HistoryTurn, ...]]:
    """Return what the language model is told of a path: the numbers of the turns, and their words.

    Of turns that failed or had no words nothing is told. The latest come first where there is no room for all.
    """
    numbers: list[int] = []
    turns: list[HistoryTurn] = []
    room = MAX_HISTORY_BYTES
    for turn in reversed(path):
        instruction, prompt = turn.request.instruction, turn.prompt
        if turn.status is not JobStatus.SUCCEEDED or not instruction or prompt is None:
            continue
        room -= len(instruction.encode()) + len(prompt.text.encode())
        if room < 0 or len(turns) == MAX_HISTORY_TURNS:
            break
        numbers.append(turn.id)
        turns.append(HistoryTurn(instruction=instruction, prompt=prompt.text))
    return numbers[::-1], tuple(turns[::-1])
