import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from billing_svc.platform import errors
from billing_svc.platform.database import tables
from billing_svc.programs import worker
from tests.billing_svc.sandboxed import World

SECONDS_MAX = 20


@pytest.fixture
async def process() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Worker processes that a test starts with `start`; whatever is left of them is killed."""
    started: list[asyncio.subprocess.Process] = []
    yield started
    for one in started:
        if one.returncode is None:
            one.kill()
            await one.wait()


async def start(world: World, started: list[asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    chosen = world.billing.settings
    environment = {
        **os.environ,
        "PYTHONPATH": "src",
        "DATABASE_URL": chosen.database_url.get_secret_value(),
        "STRIPE_API_KEY": "sk_test_tests",
        "STRIPE_API_BASE": world.sandbox.url,
        "BILLING_CHECKOUT_SUCCESS_URL": chosen.success_url,
        "BILLING_CHECKOUT_CANCEL_URL": chosen.cancel_url,
    }
    program = (
        "import asyncio; from billing_svc.platform import settings; from billing_svc.programs import worker; "
        "asyncio.run(worker.work(settings.read()))"
    )
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    started.append(made)
    return made


async def test_a_killed_worker_s_successor_goes_on_and_stops_when_told(
    world: World, process: list[asyncio.subprocess.Process]
) -> None:
    await world.subscribe()
    await world.deliver(*await world.events("customer.subscription."))
    asked = asyncio.Event()

    async def hang(_method: str, path: str) -> int | None:
        if path.startswith("/v1/subscriptions"):
            asked.set()
            await asyncio.Event().wait()
        return None

    world.sandbox.faults.before = hang
    killed = await start(world, process)
    async with asyncio.timeout(SECONDS_MAX):
        await asked.wait()
    killed.kill()
    await killed.wait()
    world.sandbox.faults.clear()
    # Its lease outlives it; the test does not wait for that.
    await world.execute(tables.stripe_objects.update().values(leased_until=world.billing.clock.now()))
    successor = await start(world, process)
    async with asyncio.timeout(SECONDS_MAX):
        while (await world.subscription()).plan != "pro":
            pass  # each round is a call
        successor.send_signal(signal.SIGTERM)
        assert await successor.wait() == 0


async def test_a_step_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.01)
    stop, steps = asyncio.Event(), 0

    async def step() -> int:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise errors.Unavailable("away")
        if steps == 2:
            raise errors.LostRace("lost")
        if steps == 3:
            return 1
        stop.set()
        return 0

    async with asyncio.timeout(SECONDS_MAX):
        await worker._loop("test", step, 0.01, stop)  # noqa: SLF001 - what every loop is
    assert steps == 4


async def test_a_stop_cuts_off_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FINISH_SECONDS_MAX", 0.05)
    stop, begun = asyncio.Event(), asyncio.Event()

    async def step() -> int:
        begun.set()
        await asyncio.Event().wait()
        return 1

    looping = asyncio.create_task(worker._loop("test", step, 0.01, stop))  # noqa: SLF001 - as above
    await begun.wait()
    stop.set()
    async with asyncio.timeout(SECONDS_MAX):
        await looping
