"""Replaces itself by a program (exec): as another user if told so, and tied to its parent's life.

`embedded_child.py` runs this file as a script, with only the standard library. A `preexec_fn` would run in a fork of a
process with threads, which can deadlock.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

# From linux/prctl.h, linux/securebits.h and linux/capability.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

UNCHANGED = -1
"""As user or group: no change. As capability: none."""


def _check(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


def _become(user_id: int, group_id: int, capability: int) -> None:
    """Change to the user, and keep the capability, if any, across that change and across exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep = capability != UNCHANGED
    if keep:
        # With this bit, the change of user removes no capabilities (capset below does), and access(2), which Postgres
        # uses to find its programs, respects the kept capability.
        _check(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "keeping capabilities")
    os.setgroups([])
    os.setgid(group_id)
    os.setuid(user_id)
    if keep:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        mask = 1 << capability
        # Effective, permitted, inheritable: first for capabilities 0-31, then for 32-63.
        sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
        _check(libc.capset(ctypes.byref(header), ctypes.byref(sets)), "setting capabilities")
        _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "raising a capability")


def _die_with_parent(parent: int) -> None:
    """Ask Linux to send SIGQUIT (Postgres' immediate shutdown) when the thread that started this process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0), "tying to the parent")
    if os.getppid() != parent:
        sys.exit("the parent is gone already")


def main() -> None:
    """Run `PARENT USER GROUP CAPABILITY PROGRAM ARGUMENTS...`."""
    parent, user_id, group_id, capability = (int(argument) for argument in sys.argv[1:5])
    program = sys.argv[5:]
    if user_id != UNCHANGED:
        _become(user_id, group_id, capability)
    if sys.platform == "linux":
        # Must follow the change of user, which clears this request.
        _die_with_parent(parent)
    os.execv(Path(program[0]), program)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
