"""Ports of 127.0.0.1 for servers that must be told theirs, or keep it across a restart."""

import contextlib
import itertools
import os
import random
import socket

# Below those from which systems take a port for an outgoing connection, or for a server that left the choice to them:
# nobody gets one of these between the look and the listening, or while a server is restarted.
_FIRST, _LAST = 20_000, 32_000
# Each process of a run has a share of its own.
_SHARES = 12
_SHARE = (_LAST - _FIRST) // _SHARES

_number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
# From somewhere in it, because another checkout's run may be under way.
_offsets = itertools.count(random.randrange(_SHARE))  # noqa: S311 - no secret


def free_port() -> int:
    """Return a port that is free and was not given before."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """Return the first of so many in a row."""
    while True:
        found = [_FIRST + _number * _SHARE + next(_offsets) % _SHARE for _ in range(count)]
        if found[-1] - found[0] == count - 1 and all(map(_is_free, found)):
            return found[0]


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
