"""Messages of chat clients become a conversation, or are refused by name."""

import base64
from typing import Any

import pytest
from pydantic import ValidationError

from services.mllm.chat_request import Conversation, conversation_of
from services.mllm.conversation import Turn
from shared.contracts.chat import ChatRequest
from shared.errors import InvalidImage, InvalidRequest

PNG = "data:image/png;base64," + base64.b64encode(b"pixels").decode()


def request(*messages: Any, **more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "mini", "messages": list(messages), **more})


def conversation(*messages: Any) -> Conversation:
    return conversation_of(request(*messages).messages)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_turns_are_questions_with_their_answers() -> None:
    found = conversation(user("one"), assistant("1"), user("two"), assistant("2"), user("three"))
    assert found == Conversation([Turn("one", "1"), Turn("two", "2"), Turn("three")], None, None)


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    found = conversation(user("a"), user("b"), assistant("c"), assistant("d"), user("e"))
    assert found.turns == [Turn("a\nb", "c\nd"), Turn("e")]


def test_system_messages_come_first_and_together() -> None:
    assert conversation(system("be kind"), system("be short", "developer"), user("hi")).system == "be kind\nbe short"
    assert conversation(system([words("a"), words("b")]), user("hi")).system == "a\nb"
    with pytest.raises(InvalidRequest, match="before all others"):
        conversation(user("hi"), system("late"))


def test_an_empty_system_message_is_not_the_family_s_own() -> None:
    assert conversation(system(""), user("hi")).system == ""
    assert conversation(user("hi")).system is None


def test_a_picture_may_come_with_any_question() -> None:
    first = conversation(user([picture(PNG), words("what is it?")]))
    assert (first.turns, first.picture) == ([Turn("what is it?")], b"pixels")
    second = conversation(user("hi"), assistant("yes?"), user([words("this:"), picture(PNG), words("tell")]))
    assert (second.turns[-1], second.picture) == (Turn("this:\ntell"), b"pixels")


@pytest.mark.parametrize("type", ["image/png", "image/jpeg", "image/jpg", "image/webp", "IMAGE/PNG"])
def test_data_uris_of_the_formats_that_are_taken(type: str) -> None:
    assert conversation(user([picture(f"data:{type};base64,AAAA")])).picture == b"\0\0\0"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "https://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,AAA",
        "data:image/png;base64,A AA",
        "data:image/png;base64,\u00e4AAA",
        "",
    ],
)
def test_anything_but_a_picture_as_a_data_uri_is_refused(url: str) -> None:
    with pytest.raises(InvalidImage):
        conversation(user([picture(url)]))


def test_two_pictures_are_refused() -> None:
    with pytest.raises(InvalidImage, match="2 pictures"):
        conversation(user([picture(PNG)]), assistant("."), user([picture(PNG)]))


@pytest.mark.parametrize(
    "messages", [[assistant("a"), user("b")], [user("a"), assistant("b")], [system("a")], [system("a"), assistant("b")]]
)
def test_what_is_no_conversation_to_be_continued_is_refused(messages: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        conversation(*messages)


def test_our_own_answers_can_be_sent_back() -> None:
    message = {"role": "assistant", "content": "yes", "refusal": None}
    assert conversation(user("a"), message, user("b")).turns[0] == Turn("a", "yes")


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"tools": []},
        {"response_format": {"type": "json_object"}},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"temperature": 3},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"max_completion_tokens": 10**9},
        {"stop": ["a"] * 5},
        {"stop": [""]},
        {"top_logprobs": 21},
        {"seed": -1},
        {"logit_bias": {"1": 100}},
        {"add_generation_prompt": False},
        {"chat_template": "{{ 1 }}"},
    ],
)
def test_what_this_service_cannot_do_is_refused_and_not_ignored(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(user("hi"), **more)


def test_values_that_change_nothing_are_taken() -> None:
    found = request(user("hi"), n=1, frequency_penalty=0, presence_penalty=0.0, user="me", stream=False)
    assert found.stops == ()
    assert found.asked_logprobs is None


def test_stops_and_log_probabilities() -> None:
    assert request(user("hi"), stop="END").stops == ("END",)
    assert request(user("hi"), stop=["a", "b"]).stops == ("a", "b")
    assert request(user("hi"), logprobs=True).asked_logprobs == 0
    assert request(user("hi"), logprobs=True, top_logprobs=3).asked_logprobs == 3
    assert request(user("hi"), logprobs=False, top_logprobs=3).asked_logprobs is None


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user("hi")] * 257,
        [user("a" * 32_769)],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [user(None)],
        [user([{"type": "input_audio", "input_audio": {}}])],
        [assistant([picture(PNG)])],
        "hi",
    ],
)
def test_messages_of_another_shape_are_refused(messages: Any) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "mini", "messages": messages})
