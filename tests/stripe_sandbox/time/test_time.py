import pathlib
import re
import sqlite3

import pytest
import stripe

import stripe_sandbox
from tests.stripe_sandbox.conftest import Receiver, make_offer, running

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

DAY_SECONDS = 24 * 3600


def move_clock(state_file: pathlib.Path, seconds: int) -> None:
    with sqlite3.connect(state_file) as connection:
        connection.execute("INSERT OR REPLACE INTO facts VALUES ('clock_offset_seconds', ?)", (seconds,))
    connection.close()


async def test_keys_and_identifiers_are_forgotten_after_a_day(state_file: pathlib.Path) -> None:
    options: stripe.RequestOptions = {"idempotency_key": "k1"}
    async with running(state_file) as sandbox:
        customer = await sandbox.stripe.v1.customers.create_async({}, options)
        event: stripe.params.billing.MeterEventCreateParams = {
            "event_name": "e",
            "identifier": "report-1",
            "payload": {"stripe_customer_id": customer.id, "value": "1"},
        }
        await sandbox.stripe.v1.billing.meter_events.create_async(event)
    move_clock(state_file, DAY_SECONDS - 60)
    async with running(state_file) as sandbox:
        assert (await sandbox.stripe.v1.customers.create_async({}, options)).id == customer.id
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            await sandbox.stripe.v1.billing.meter_events.create_async(event)
    move_clock(state_file, DAY_SECONDS + 60)
    async with running(state_file) as sandbox:
        assert (await sandbox.stripe.v1.customers.create_async({}, options)).id != customer.id
        await sandbox.stripe.v1.billing.meter_events.create_async(event)


async def test_a_session_expires_and_signatures_stay_in_the_real_time(
    state_file: pathlib.Path, receiver: Receiver
) -> None:
    async with running(state_file) as sandbox:
        offer = await make_offer(sandbox)
        session = await sandbox.stripe.v1.checkout.sessions.create_async(
            {
                "mode": "subscription",
                "success_url": "https://shop.example/done",
                "line_items": [{"price": offer.base, "quantity": 1}],
            }
        )
    move_clock(state_file, DAY_SECONDS + 60)
    async with running(state_file, receiver.url) as sandbox:
        page = await sandbox.http.post(f"/checkout/{session.id}/pay")
        assert (page.status_code, "has expired" in page.text) == (410, True)
        assert (await sandbox.stripe.v1.subscriptions.list_async({})).data == []
        await receiver.until(lambda: receiver.types() == ["checkout.session.expired"])


def test_only_the_clock_tells_the_time_and_nothing_else_of_the_project_is_imported() -> None:
    folder = pathlib.Path(str(stripe_sandbox.__file__)).parent
    forbidden = re.compile(
        r"^import time|\.now\(dt\.|\.utcnow\(|\.today\(|^(import|from) (billing|webhook_gateway)", re.MULTILINE
    )
    assert [file.name for file in folder.rglob("*.py") if forbidden.search(file.read_text())] == ["clock.py"]
