"""The TCP connections of a port that this process listens on, as its own descriptors show them.

gRPC's core tells nobody how many it has, whichever of its interfaces the server uses.
"""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Iterator

_DESCRIPTORS = "/dev/fd"
_POLL_SECONDS = 0.02
# The core takes a connection up within a turn of the loop; past this it is overloaded, and no wait helps.
_ACCEPT_SECONDS_MAX = 0.5


async def refuse_new(port: int) -> None:
    """End the listening sockets, once no connection waits in them: those would be reset. Open ones go on."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _ACCEPT_SECONDS_MAX
    with contextlib.ExitStack() as opened:
        listening = [one for one in map(opened.enter_context, _sockets(port)) if _is_listening(one)]
        while loop.time() < until and select.select(listening, (), (), 0)[0]:  # noqa: ASYNC110 - the core tells nobody
            await asyncio.sleep(0.001)
        # Without a pause since the last look. Not closed: the descriptors are the core's.
        for one in listening:
            with contextlib.suppress(OSError):  # macOS cannot; it has no workers that share a port
                one.shutdown(socket.SHUT_RDWR)


async def gone(port: int, seconds_max: float) -> bool:
    """Wait until no connection is open, and say whether that came about in time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds_max
    while count(port):
        if loop.time() >= until:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def is_listened_on(port: int) -> bool:
    """Say whether this process takes connections to a port."""
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
    """Yield a duplicate of each TCP socket of the port; whoever takes one closes it."""
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - names are what is wanted
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
    # Not "is not listening": a listening socket that was ended stays open in the core.
    with contextlib.suppress(OSError):
        one.getpeername()
        return True
    return False


def _is_listening(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
