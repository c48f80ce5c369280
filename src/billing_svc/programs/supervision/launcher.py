"""Replaces itself by a program (exec) that Linux kills when its parent ends.

`children.py` runs this file as a script, with only the standard library: a `preexec_fn` would run in a fork of a
process with threads, which can deadlock. `embedded_launcher.py` does more (another user, Postgres' own shutdown
signal), which is not needed here.
"""

import ctypes
import os
import signal
import sys

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run `PARENT PROGRAM ARGUMENTS...`."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # The setting survives exec. SIGKILL, because no process would be left to send it after a SIGTERM.
        if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit("the process cannot be tied to its parent's life")
        if os.getppid() != parent:
            sys.exit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
