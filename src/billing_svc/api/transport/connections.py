"""The TCP connections of a port that this process listens on, found among the process's file descriptors.

None of gRPC's interfaces tells how many connections its core has.
"""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Iterator

_DESCRIPTORS = "/dev/fd"
_POLL_SECONDS = 0.02
# The core accepts a connection within a turn of the loop. If it needs longer than this, it is overloaded.
_ACCEPT_SECONDS_MAX = 0.5


async def refuse_new(port: int) -> None:
    """Shut the listening sockets down when none has a connection to accept, which would be reset.

    Does so after `_ACCEPT_SECONDS_MAX` in any case. Open connections stay open.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + _ACCEPT_SECONDS_MAX
    with contextlib.ExitStack() as opened:
        listening = [one for one in map(opened.enter_context, _sockets(port)) if _is_listening(one)]
        while loop.time() < until and select.select(listening, (), (), 0)[0]:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)
        # No `await` since the last check: a connection that comes in between is reset, so that time must be short.
        # The sockets are not closed, because their descriptors belong to the core.
        for one in listening:
            with contextlib.suppress(OSError):  # macOS refuses it; workers share a port on Linux only
                one.shutdown(socket.SHUT_RDWR)


async def gone(port: int, seconds_max: float) -> bool:
    """Wait until no connection to the port is open; returns False if any is still open after `seconds_max`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds_max
    while count(port):
        if loop.time() >= until:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def is_listened_on(port: int) -> bool:
    """Say whether this process has a listening socket on the port."""
    with contextlib.ExitStack() as opened:
        return any(_is_listening(one) for one in map(opened.enter_context, _sockets(port)))


def count(port: int) -> int:
    """Return how many connections to a port are open in this process."""
    found = 0
    for one in _sockets(port):
        with one:
            found += _has_peer(one)
    return found


def _sockets(port: int) -> Iterator[socket.socket]:
    """Yield a duplicate of each TCP socket of the port; the caller must close each."""
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - only names are needed
        try:
            duplicate = os.dup(int(name))
        except OSError:  # closed meanwhile
            continue
        try:
            one = socket.socket(fileno=duplicate)
        except OSError:  # no socket
            os.close(duplicate)
            continue
        if one.family in {socket.AF_INET, socket.AF_INET6} and _has_port(one, port):
            yield one
        else:
            one.close()


def _has_port(one: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):  # reset meanwhile
        return bool(one.type == socket.SOCK_STREAM and one.getsockname()[1] == port)
    return False


def _has_peer(one: socket.socket) -> bool:
    # Asks for the peer, because a socket that `refuse_new` shut down neither listens nor is a connection.
    with contextlib.suppress(OSError):
        one.getpeername()
        return True
    return False


def _is_listening(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
