"""Pictures of strangers, decoded where they can do no harm (`gateway.decoder_process`).

Everything here blocks: call it from a worker thread. What is decoded takes no turn of this process's interpreter, so
the event loop goes on however large a picture is.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

from gateway.decoder_process import Bounds
from shared.contracts import Problem
from shared.errors import InvalidImage, InvalidRequest, Overloaded, RequestError

PATIENCE_S = 60.0  # of the clock, for what may take 2 s of a processor: only a starved machine needs more
RETRY_AFTER_S = 2
_STOP_S = 5.0
_MAX_LINE_BYTES = 65_536
_REFUSALS: dict[str, type[RequestError]] = {kind.code: kind for kind in (InvalidImage, InvalidRequest)}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture's plain PNG file, and its size in pixels."""

    data: bytes
    width: int
    height: int


class Decoder:
    """Has pictures decoded by a process of its own, which it starts when there is the first one; `close` when done."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = asdict(bounds or Bounds())
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def plain(self, picture: bytes | str) -> Decoded:
        """Decode a PNG, JPEG or WebP file; a text is one in base64 or a data URI.

        Raises:
            InvalidImage: it is something else, is damaged, or exceeds a limit.
            Overloaded: the machine is too busy to tell.
        """
        is_inline = isinstance(picture, str)
        data = picture.encode() if isinstance(picture, str) else picture
        return _picture(self._ask(data, work="plain", is_inline=is_inline))

    def hole(self, data: bytes, field: str) -> Decoded:
        """Decode a picture's transparency as a mask (`gateway.openai.masks`).

        Raises:
            InvalidRequest: nothing in it is see-through; `field` is the field that it came in.
            InvalidImage, Overloaded: as for `plain`.
        """
        return _picture(self._ask(data, work="hole", field=field))

    def check_mask(self, data: bytes, width: int, height: int) -> None:
        """Refuse a mask that does not fit (`shared.media.check_mask`).

        Raises:
            InvalidRequest: it does not.
            InvalidImage, Overloaded: as for `plain`.
        """
        self._ask(data, work="check", width=width, height=height)

    def close(self) -> None:
        """End the process; pictures that are under way are still finished."""
        with self._lock:
            self._end()

    def _ask(self, data: bytes, **asked: Any) -> tuple[dict[str, Any], bytes]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._hand_over(theirs)
            ours.settimeout(PATIENCE_S)
            try:
                ours.sendall(json.dumps({**asked, "bounds": self._bounds, "bytes": len(data)}).encode() + b"\n")
                ours.sendall(data)
                with ours.makefile("rb") as stream:
                    line = stream.readline(_MAX_LINE_BYTES)
                    told = json.loads(line) if line.endswith(b"\n") else {"bytes": -1}
                    body = stream.read(told["bytes"]) if told["bytes"] >= 0 else b""
            except TimeoutError:
                raise Overloaded("The picture could not be decoded in time.", retry_after_s=RETRY_AFTER_S) from None
            except (BrokenPipeError, ConnectionResetError):
                told, body = {"bytes": -1}, b""
        if len(body) != told["bytes"]:  # the kernel has ended it
            raise InvalidImage(
                "The picture takes more memory or time to decode than any usual picture does.",
                next_step="Open it in an image program, save it again as an ordinary PNG or JPEG and send that.",
            )
        if "problem" in told:
            problem = Problem.model_validate(told["problem"])
            kind = _REFUSALS[problem.code]
            raise kind(problem.detail, next_step=problem.next_step, errors=problem.errors)
        return told, body

    def _hand_over(self, theirs: socket.socket) -> None:
        with self._lock:
            for _ in range(2):  # it may have been killed since the last picture
                if self._control is None:
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"+"], [theirs.fileno()])
                    return
                except OSError:
                    self._end()
        raise Overloaded("Pictures cannot be decoded now.", retry_after_s=RETRY_AFTER_S)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # It must not know where the queue is, nor end before the gateway when somebody presses Ctrl-C.
            known = {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.decoder_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**known, "OPENBLAS_NUM_THREADS": "1"},  # each thread's buffers would count as memory
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(PATIENCE_S)
        self._control = ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _picture(answer: tuple[dict[str, Any], bytes]) -> Decoded:
    told, data = answer
    return Decoded(data, told["width"], told["height"])
