"""Becomes the program that it is told to run, and on Linux never outlives its parent.

`children.py` runs this file as a script of its own, with the standard library alone: a `preexec_fn` would do the same
inside a fork of a process with threads, which may deadlock. What the database's launcher does beyond this (another
user, Postgres' own way to be ended) is not needed here.
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
        # Survives exec. SIGKILL, because nobody would be left to insist.
        if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit("the process cannot be tied to its parent's life")
        if os.getppid() != parent:
            sys.exit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
