from clients.sse import Message, messages


def test_a_message_ends_at_the_empty_line() -> None:
    lines = [
        "id: 1-0",
        "event: job.queued",
        'data: {"stage":"prompt"}',
        "",
        "id: 2-0",
        "event: job.started",
        "data: {}",
    ]
    assert list(messages(lines)) == [Message("job.queued", '{"stage":"prompt"}', "1-0")]


def test_comments_and_retry_lines_are_no_messages() -> None:
    assert list(messages([": ping", "", "retry: 1000", ""])) == []


def test_data_lines_are_joined_and_one_leading_space_is_dropped() -> None:
    assert list(messages(["data:  two", "data:one", ""])) == [Message("message", " two\none", "")]


def test_the_last_id_stays_until_another_comes() -> None:
    ids = [message.id for message in messages(["id: 7-1", "data: a", "", "data: b", ""])]
    assert ids == ["7-1", "7-1"]


def test_an_id_with_a_nul_is_ignored() -> None:
    assert next(messages(["id: 7\0", "data: a", ""])).id == ""
