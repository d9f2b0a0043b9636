"""Server-sent events as the HTML standard defines their parsing (§9.2.6), for one stream of lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One dispatched event; `id` is the last id seen on the stream, as the standard says."""

    event: str
    data: str
    id: str


def messages(lines: Iterable[str]) -> Iterator[Message]:
    """Yield the messages of a stream given as lines without their ends; an unfinished last one is dropped."""
    event, data, last_id = "", list[str](), ""
    for line in lines:
        if not line:
            if data:
                yield Message(event or "message", "\n".join(data), last_id)
            event, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            last_id = value
