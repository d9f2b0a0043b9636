"""Sessions in Redis (or Valkey), beside the queue whose jobs are their turns.

They share the queue's keys, clock and prelude, so that a turn is added in the step that accepts its job, and what the
job came to is left with the turn in the step that ends it.
"""

from shared.sessions.store import Opened, SessionStore

__all__ = ["Opened", "SessionStore"]
