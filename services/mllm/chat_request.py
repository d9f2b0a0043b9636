"""The conversation that a chat client's messages stand for.

A picture comes as a data URI: nothing is ever fetched.
"""

import base64
import binascii
import re
from dataclasses import dataclass

from services.mllm.conversation import Turn
from shared.contracts.chat import AssistantMessage, ImagePart, Message, SystemMessage, TextPart, UserMessage
from shared.errors import InvalidImage, InvalidRequest

_DATA_URI = re.compile(r"data:image/(?:png|jpeg|jpg|webp);base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Conversation:
    """Messages in the form that the language model knows; the last turn has no answer yet."""

    turns: list[Turn]
    system: str | None
    picture: bytes | None


def conversation_of(messages: list[Message]) -> Conversation:
    """Return the conversation of a request.

    Messages of one role in a row are one turn. The picture may come with any user message; the model sees it
    before the first question, as in training (LLMGA.md §2).

    Raises:
        InvalidRequest: the messages are no conversation that ends with a person's words.
        InvalidImage: the picture is no data URI, or there are several.
    """
    systems: list[str] = []
    questions: list[str] = []
    answers: list[str] = []
    pictures: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        text = _text_of(message)
        if isinstance(message, SystemMessage):
            if questions or turns:
                raise InvalidRequest("A system message comes before all others.")
            systems.append(text)
            continue
        if isinstance(message, AssistantMessage):
            if not questions:
                raise InvalidRequest("An assistant's message follows a user's.")
            answers.append(text)
            continue
        if answers:
            turns.append(Turn("\n".join(questions), "\n".join(answers)))
            questions, answers = [], []
        questions.append(text)
        if isinstance(message.content, list):
            pictures += [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
    if answers or not questions:
        raise InvalidRequest("The last message is the user's: it is what is answered.")
    if len(pictures) > 1:
        raise InvalidImage(f"The conversation has {len(pictures)} pictures; the model sees one.")
    turns.append(Turn("\n".join(questions)))
    return Conversation(turns, "\n".join(systems) if systems else None, _file_of(pictures[0]) if pictures else None)


def _text_of(message: SystemMessage | UserMessage | AssistantMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _file_of(url: str) -> bytes:
    start = _DATA_URI.match(url)
    if start is None:
        raise InvalidImage(
            "The picture is not a data URI of a PNG, JPEG or WebP file.",
            next_step="Send `data:image/png;base64,…`: this server fetches no addresses.",
        )
    try:
        return base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("The picture's data URI is not base64.") from None
