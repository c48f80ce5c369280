"""The clock moves in steps; each due action happens at its own time."""

import asyncio
import pathlib
from typing import Any

import httpx
import pytest

from tests.stripe_sandbox.conftest import Receiver, Sandbox, make_offer, running
from tests.stripe_sandbox.time.clocks import HOUR, clock, session


async def move(sandbox: Sandbox, way: str, **body: object) -> httpx.Response:
    return await sandbox.http.post(f"/_sandbox/clock/{way}", json=body, timeout=30)


async def expired(sandbox: Sandbox) -> list[tuple[str, int]]:
    events = await sandbox.stripe.v1.events.list_async({"type": "checkout.session.expired"})
    return [(event.data.object["id"], event.created) for event in reversed(events.data)]


@pytest.fixture
async def sessions(sandbox: Sandbox) -> list[tuple[str, int]]:
    """Return three open sessions with their expiry times, sorted by these; they are created in another order."""
    offer = await make_offer(sandbox)
    now = (await clock(sandbox))["now"]
    made = {now + hours * HOUR: "" for hours in (3, 1, 2)}
    for at in made:
        made[at] = await session(sandbox, offer.base, at)
    return [(made[at], at) for at in sorted(made)]


async def test_the_clock_says_what_comes_next(sandbox: Sandbox, sessions: list[tuple[str, int]]) -> None:
    first, at = sessions[0]
    assert (await clock(sandbox))["next"] == {"at": at, "what": "expires", "subject": first}


async def test_a_step_goes_to_the_next_thing_and_no_further(sandbox: Sandbox, sessions: list[tuple[str, int]]) -> None:
    short = (await move(sandbox, "step", seconds=60)).json()
    assert (short["moved_seconds"], short["happened"]) == (60, [])
    step = (await move(sandbox, "step", seconds=10 * HOUR)).json()
    assert step["happened"] == [{"at": sessions[0][1], "what": "expires", "subject": sessions[0][0]}]
    assert step["now"] - sessions[0][1] in {0, 1}
    assert await expired(sandbox) == sessions[:1]


async def test_a_way_passes_everything_in_order_each_at_its_instant(
    sandbox: Sandbox, sessions: list[tuple[str, int]]
) -> None:
    before = await clock(sandbox)
    last = (await move(sandbox, "advance", seconds=10 * HOUR, pause_seconds=0)).json()
    assert await expired(sandbox) == sessions
    assert last["now"] - before["now"] in {10 * HOUR, 10 * HOUR + 1}
    assert (await clock(sandbox))["offset_seconds"] == 10 * HOUR


async def test_what_was_missed_happens_at_its_instant_all_the_same(state_file: pathlib.Path) -> None:
    async with running(state_file) as sandbox:
        offer = await make_offer(sandbox)
        at = (await clock(sandbox))["now"] + HOUR
        made = await session(sandbox, offer.base, at)
        # Two actions are due in a single step: the clock is already past the first action when it happens.
        await move(sandbox, "step", seconds=HOUR - 2)
    async with running(state_file) as sandbox:
        assert (await clock(sandbox))["offset_seconds"] == HOUR - 2, "a restart keeps the clock"
        async with asyncio.timeout(10):
            while not await expired(sandbox):  # noqa: ASYNC110 - nobody tells when
                await asyncio.sleep(0.05)
        assert await expired(sandbox) == [(made, at)]


async def test_a_step_waits_for_its_events(state_file: pathlib.Path, receiver: Receiver) -> None:
    async with running(state_file, receiver.url) as sandbox:
        offer = await make_offer(sandbox)
        await session(sandbox, offer.base, (await clock(sandbox))["now"] + HOUR)
        step = (await move(sandbox, "step", seconds=2 * HOUR)).json()
        assert step["undelivered"] == 0
        assert "checkout.session.expired" in receiver.types()
        receiver.status = 500
        await sandbox.stripe.v1.customers.create_async({})
        step = (await move(sandbox, "step", seconds=1, delivery_seconds=0.2)).json()
        assert step["undelivered"] == 1, "given up after a bound"


@pytest.mark.parametrize(
    "body", [{}, {"seconds": -1}, {"seconds": 10**12}, {"seconds": 1, "hours": 2}, {"seconds": "soon"}]
)
async def test_a_way_that_makes_no_sense_is_refused(sandbox: Sandbox, body: dict[str, Any]) -> None:
    answer = await move(sandbox, "advance", **body)
    assert answer.status_code == 400, answer.text
    assert (await clock(sandbox))["offset_seconds"] == 0


async def test_another_sites_form_cannot_move_the_clock(sandbox: Sandbox) -> None:
    answer = await sandbox.http.post(
        "/_sandbox/clock/step", content='{"seconds": 5}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400
