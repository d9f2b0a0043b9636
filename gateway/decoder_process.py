"""`python -m gateway.decoder_process FD`: decodes pictures of strangers, each in a process of its own.

This process has everything loaded, knows no secret, and does one thing: for each socket that comes over its own (`FD`)
it forks. The child takes one picture from that socket, answers, and is gone, and with it whatever a hostile file may
have made of it. The kernel holds its bounds: 512 MiB of addresses, 2 s of processor time, no file written.

On the wire, both ways: a line of JSON, whose `bytes` says how many bytes follow it.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.openai.masks import mask_pixels
from shared.contracts import OutputFormat
from shared.errors import RequestError
from shared.media import check_mask, decode_image, encode_image, inline_bytes, mask_of

MAX_S = 90.0  # of the clock: a child whose gateway has forgotten it ends by itself
_MAX_LINE_BYTES = 4_096

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one picture may take. The largest that is accepted takes 440 MiB, half of which is the interpreter's, and
    a second of a core of 2020."""

    memory_bytes: int = 512 * 1_048_576  # of addresses
    cpu_s: float = 2.0


def main() -> int:
    """Fork for each socket that comes, until the gateway closes its end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _warm_up()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return 0
        if os.fork() == 0:
            control.close()
            try:
                with socket.socket(fileno=descriptors[0]) as asker:
                    _answer(asker)
            finally:
                os._exit(0)
        os.close(descriptors[0])


def _warm_up() -> None:
    """Load the decoders while files may still be opened."""
    for output_format in OutputFormat:
        decode_image(encode_image(np.zeros((8, 8, 3), np.uint8), output_format, {}))


def _keep_within(bounds: Bounds) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, bounds.cpu_s)  # what these two send ends a process that has no handler
    signal.setitimer(signal.ITIMER_REAL, MAX_S)


def _answer(asker: socket.socket) -> None:
    with asker.makefile("rwb") as stream:
        asked = json.loads(stream.readline(_MAX_LINE_BYTES))
        _keep_within(Bounds(**asked["bounds"]))
        data = stream.read(asked["bytes"])
        told: dict[str, Any]
        body = b""
        try:
            told, body = _WORK[asked["work"]](data, asked)
        except RequestError as error:
            told = {"problem": error.to_problem().model_dump(mode="json")}
        except MemoryError:
            return  # as the kernel would end it
        stream.write(json.dumps({**told, "bytes": len(body)}).encode() + b"\n" + body)


def _plain(data: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    return _file_of(decode_image(inline_bytes(data.decode()) if asked["is_inline"] else data))


def _hole(data: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    return _file_of(mask_pixels(data, asked["field"]))


def _check(data: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    check_mask(mask_of(decode_image(data)), asked["width"], asked["height"])
    return {}, b""


_WORK: dict[str, Callable[[bytes, dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
    "plain": _plain,
    "hole": _hole,
    "check": _check,
}


def _file_of(pixels: Pixels) -> tuple[dict[str, Any], bytes]:
    height, width, _ = pixels.shape
    return {"width": width, "height": height}, encode_image(pixels, OutputFormat.PNG, {})


if __name__ == "__main__":
    sys.exit(main())
