"""How a part is kept running and ended, with real processes."""

import asyncio
import io
import os
import sys
import time

import pytest

from billing_svc.programs.commands import common
from billing_svc.programs.dev import parts, terminal
from billing_svc.programs.supervision import children, deaths

WAIT_SECONDS_MAX = 20


async def always(_child: children.Child) -> bool:
    return True


def part(script: str) -> tuple[parts.DevPart, io.StringIO]:
    """Return a part that runs a script, and what is shown of it."""
    shown = io.StringIO()
    program = parts.Program("thing", (sys.executable, "-u", "-c", script), os.environ, always)
    return parts.DevPart(program, terminal.Terminal(shown, on_gone=lambda: None)), shown


async def shows(shown: io.StringIO, text: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while text not in shown.getvalue():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)


async def test_a_part_that_keeps_dying_is_given_up_with_its_last_lines() -> None:
    broken, shown = part("print('no such thing as luck'); raise SystemExit(3)")

    with pytest.raises(common.Refusal) as refused:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await broken.keep()

    assert "thing ended with exit code 3, 5 times within 30 s" in str(refused.value)
    assert "no such thing as luck" in str(refused.value)
    assert shown.getvalue().count("starting it again") == deaths.DEATHS_MAX - 1


async def test_a_part_that_ignores_the_request_to_end_is_ended_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_SECONDS_MAX", 0.3)
    stubborn, shown = part("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(60)")
    keeping = asyncio.create_task(stubborn.keep())
    await shows(shown, "deaf")

    keeping.cancel()
    started = time.monotonic()
    await stubborn.stop()

    assert time.monotonic() - started < 5
    assert "did not stop" in shown.getvalue()


async def test_what_a_part_leaves_behind_goes_with_it() -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('left', child.pid); time.sleep(60)"
    )
    parent, shown = part(script)
    keeping = asyncio.create_task(parent.keep())
    await shows(shown, "left ")
    left = int(shown.getvalue().partition("left ")[2].split()[0])

    keeping.cancel()
    started = time.monotonic()
    await parent.stop()

    assert time.monotonic() - started < children.GRACE_SECONDS_MAX
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while is_running(left):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)


async def test_a_part_that_dies_is_started_again_though_its_child_holds_the_output_open() -> None:
    script = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "raise SystemExit(3)"
    )
    abandoned, shown = part(script)
    keeping = asyncio.create_task(abandoned.keep())

    await shows(shown, "thing ended with exit code 3; starting it again")
    keeping.cancel()
    await abandoned.stop()


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - a file of the kernel's
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_line_without_an_end_is_shown_in_pieces() -> None:
    talker, shown = part("import sys, time; sys.stdout.write('x' * 300_000); print('y'); time.sleep(60)")
    keeping = asyncio.create_task(talker.keep())

    await shows(shown, "y\n")
    keeping.cancel()
    await talker.stop()

    assert shown.getvalue().count("x") == 300_000


async def test_a_reader_that_went_away_is_noticed_once() -> None:
    gone = []
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed:
        shown = terminal.Terminal(closed, on_gone=lambda: gone.append(True))
        shown.say("one")
        shown.say("two")

    assert gone == [True]
