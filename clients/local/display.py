"""What a person sees while the system starts and runs: a table that changes in place, or plain lines in a pipe."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clients.local.launcher import Row

_COLORS = {"ready": "green", "restarting": "red", "stopped": "dim"}


class Display(Protocol):
    """Shows what happened and how things are."""

    def say(self, text: str) -> None:
        """Show a sentence that stays."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show the present state of every part."""

    def settle(self) -> None:
        """Leave the table as it is; sentences follow below it."""


class PlainDisplay:
    """A line for each change, with the seconds since the start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started_at = time.monotonic()
        self._last: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def say(self, text: str) -> None:
        """Write the sentence."""
        self._stream.write(f"[{time.monotonic() - self._started_at:5.0f} s] {text}\n")
        self._stream.flush()

    def show(self, rows: Sequence[Row]) -> None:
        """Write the parts that changed."""
        for row in rows:
            if self._last.get(row.name) != (row.state, row.detail):
                self._last[row.name] = (row.state, row.detail)
                self.say(f"{row.name}: {_words(row)}")

    def settle(self) -> None:
        """Do nothing: every line stays."""


class LiveDisplay:
    """A table that changes in place until it is settled."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at = time.monotonic()
        self._since: dict[str, tuple[str, float]] = {}
        self._rows: Sequence[Row] = ()
        self._live: Live | None = Live(
            console=console, get_renderable=self._table, refresh_per_second=8, redirect_stdout=False
        )
        self._live.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()

    def say(self, text: str) -> None:
        """Print the sentence above the table."""
        self._console.print(Text(text))

    def show(self, rows: Sequence[Row]) -> None:
        """Take the rows for the next refresh."""
        now = time.monotonic()
        for row in rows:
            if self._since.get(row.name, ("", 0.0))[0] != row.state:
                self._since[row.name] = (row.state, now)
        self._rows = rows

    def settle(self) -> None:
        """Leave the table as it is; what follows is printed below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for row in self._rows:
            since = self._since.get(row.name, ("", now))[1]
            waited = "" if row.state == "ready" else f"{now - since:.0f} s"
            state = Text(row.state, style=_COLORS.get(row.state, "yellow"))
            table.add_row("", row.name, state, Text(_beyond_state(row), overflow="ellipsis", no_wrap=True), waited)
        return table


def _beyond_state(row: Row) -> str:
    return "" if row.detail == row.state else row.detail


def _words(row: Row) -> str:
    detail = _beyond_state(row)
    return f"{row.state} ({detail})" if detail else row.state


def open_display() -> PlainDisplay | LiveDisplay:
    """Return the display that fits standard error."""
    console = Console(stderr=True, highlight=False)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)
