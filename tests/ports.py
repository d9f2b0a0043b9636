"""Ports of this machine that nobody has."""

import socket


def listening() -> socket.socket:
    """Return a socket at a free port, for a server in this event loop.

    asyncio sends small writes at once on sockets that name their protocol. On others the kernel holds an answer's body
    back until the client has confirmed its head, for 40 ms.
    """
    bound = socket.socket(proto=socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    return bound


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with listening() as probe:
        return int(probe.getsockname()[1])
