import asyncio
import contextlib
import pathlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
import stripe

from tests.stripe_sandbox.conftest import SECRET, Receiver, Sandbox, make_offer, running

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


async def paid_checkout(sandbox: Sandbox) -> str:
    offer = await make_offer(sandbox)
    session = await sandbox.stripe.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "line_items": [{"price": offer.base, "quantity": 1}, {"price": offer.metered}],
            "subscription_data": {"metadata": {"account_id": "acme"}},
        },
        {"idempotency_key": "checkout-1"},
    )
    assert (await sandbox.http.post(f"{session.url}/pay")).status_code == 303
    return session.id


ALL = sorted(
    [
        "product.created",
        "billing.meter.created",
        "price.created",
        "price.created",
        "customer.created",
        "payment_method.attached",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.created",
        "customer.subscription.updated",  # paid, hence active
        "checkout.session.completed",
    ]
)


async def test_a_paid_checkout_arrives_as_signed_events(state_file: pathlib.Path, receiver: Receiver) -> None:
    async with running(state_file, receiver.url) as sandbox:
        session_id = await paid_checkout(sandbox)
        await receiver.until(lambda: len(receiver.accepted) == len(ALL))
        assert receiver.types() == ALL
        events = {event["type"]: event for event in receiver.accepted}
        completed, created = events["checkout.session.completed"], events["customer.subscription.created"]
        assert completed["api_version"] == "2026-10-28.endive"
        assert completed["data"]["object"]["id"] == session_id
        assert completed["data"]["object"]["subscription"] == created["data"]["object"]["id"]
        assert created["data"]["object"]["metadata"] == {"account_id": "acme"}
        assert events["product.created"]["request"]["id"].startswith("req_")
        stored = await sandbox.stripe.v1.events.retrieve_async(completed["id"])
        assert stored.type == "checkout.session.completed"


async def test_a_refused_event_is_repeated_signed_afresh(state_file: pathlib.Path, receiver: Receiver) -> None:
    receiver.status = 503
    async with running(state_file, receiver.url) as sandbox:
        await sandbox.stripe.v1.customers.create_async({})
        await receiver.until(lambda: receiver.attempts == 2)
        receiver.status = 200
        await receiver.until(lambda: len(receiver.accepted) == 1)
        assert receiver.attempts == 3
        assert len(set(receiver.signatures)) > 1
    assert receiver.types() == ["customer.created"]


async def test_a_restart_keeps_objects_keys_and_undelivered_events(
    state_file: pathlib.Path, receiver: Receiver
) -> None:
    receiver.status = 500
    async with running(state_file, receiver.url) as sandbox:
        made = await sandbox.stripe.v1.customers.create_async({"name": "a"}, {"idempotency_key": "k1"})
        await receiver.until(lambda: receiver.attempts >= 1)
    receiver.status = 200
    async with running(state_file, receiver.url) as sandbox:
        again = await sandbox.stripe.v1.customers.create_async({"name": "a"}, {"idempotency_key": "k1"})
        assert again.id == made.id
        await receiver.until(lambda: len(receiver.accepted) == 1)
    assert receiver.accepted[0]["data"]["object"]["id"] == made.id


@contextlib.asynccontextmanager
async def started(state_file: pathlib.Path, receiver: Receiver, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the program; it is ended with the test, also if the test fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stripe_sandbox", "--port", str(port), "--state", str(state_file)),
        *("--webhook-url", receiver.url, "--webhook-secret", SECRET),
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    try:
        await answering(process, f"http://127.0.0.1:{port}/healthz")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answering(process: asyncio.subprocess.Process, url: str) -> None:
    async with asyncio.timeout(15), httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                if (await http.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                assert process.returncode is None
                await asyncio.sleep(0.05)


async def test_a_sandbox_killed_under_load_goes_on_where_it_was(state_file: pathlib.Path, receiver: Receiver) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    transport = stripe.HTTPXClient(timeout=5)
    client = stripe.StripeClient("sk_test_1", base_addresses={"api": f"http://127.0.0.1:{port}"}, http_client=transport)
    acknowledged: dict[str, str] = {}

    async def create(key: str) -> None:
        made = await client.v1.customers.create_async({"name": key}, {"idempotency_key": key})
        assert acknowledged.setdefault(key, made.id) == made.id

    keys = [f"key-{number}" for number in range(200)]
    async with started(state_file, receiver, port) as process:
        loads = [asyncio.create_task(create(key)) for key in keys]
        await receiver.until(lambda: len(receiver.accepted) >= 5)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        results = await asyncio.gather(*loads, return_exceptions=True)
    assert any(isinstance(each, stripe.APIConnectionError) for each in results), "killed too late to matter"

    async with started(state_file, receiver, port) as process:
        for key in keys:
            await create(key)
        pages = await client.v1.customers.list_async({"limit": 100})
        listed = [each.id async for each in pages.auto_paging_iter()]
        assert sorted(listed) == sorted(acknowledged.values())
        await receiver.until(lambda: len({event["id"] for event in receiver.accepted}) == len(keys), seconds=10)
        told = {event["id"]: event["data"]["object"]["id"] for event in receiver.accepted}
        assert sorted(told.values()) == sorted(listed)
        process.terminate()
        assert await process.wait() in {0, -signal.SIGTERM}
    await transport.close_async()  # type: ignore[no-untyped-call] # the SDK's
