"""A job as a turn of a session: added to it in the step that accepts the job."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a turn goes, what is kept of it (a `TurnRecord` in JSON), and the session's bounds."""

    session_id: str
    record: str
    max_turns: int
    max_bytes: int
    retention_s: int
