"""The faults that the sandbox can be told to produce."""

import asyncio
import pathlib
import time
from typing import Any

import httpx
import pytest
import stripe

from stripe_sandbox import settings
from stripe_sandbox.control import faults
from tests.stripe_sandbox.conftest import SECRET, Receiver, Sandbox, running

KEY: stripe.RequestOptions = {"idempotency_key": "k1"}


async def fault(sandbox: Sandbox, kind: str, **more: object) -> None:
    answer = await sandbox.http.post("/_sandbox/faults", json={"kind": kind, **more})
    assert answer.status_code == 200, answer.text


async def customers(sandbox: Sandbox) -> list[str | None]:
    """Return the names of the created customers, oldest first."""
    await sandbox.http.delete("/_sandbox/faults")
    return [each.name for each in reversed((await sandbox.stripe.v1.customers.list_async({})).data)]


async def create(sandbox: Sandbox, name: str = "a") -> stripe.Customer:
    return await sandbox.stripe.v1.customers.create_async({"name": name}, KEY)


async def raw(sandbox: Sandbox, key: str = "k1") -> httpx.Response:
    return await sandbox.http.post("/v1/customers", data={"name": "a"}, headers={"Idempotency-Key": key})


@pytest.mark.parametrize(("kind", "status"), [("rate_limited", 429), ("conflict", 409), ("unavailable", 503)])
async def test_a_refusal_does_nothing_and_leaves_the_key_free(sandbox: Sandbox, kind: str, status: int) -> None:
    await fault(sandbox, kind, count=1)
    assert (await raw(sandbox)).status_code == status
    assert (await raw(sandbox)).status_code == 200
    assert await customers(sandbox) == ["a"]


@pytest.mark.parametrize(("says", "header"), [(True, "true"), (False, "false"), (None, None)])
async def test_a_failed_answer_may_say_whether_to_try_again(
    sandbox: Sandbox, *, says: bool | None, header: str | None
) -> None:
    await fault(sandbox, "rate_limited", should_retry=says)
    answer = await raw(sandbox)
    assert answer.headers.get("stripe-should-retry") == header
    with pytest.raises(stripe.RateLimitError):
        await create(sandbox)


@pytest.mark.parametrize("does_it", [False, True])
async def test_a_500_is_kept_under_its_key(sandbox: Sandbox, does_it: bool) -> None:  # noqa: FBT001 - a case
    await fault(sandbox, "broken", count=1, does_it=does_it)
    assert (await raw(sandbox)).status_code == 500
    again = await raw(sandbox)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (500, "true")
    assert await customers(sandbox) == (["a"] if does_it else [])
    assert (await raw(sandbox, "k2")).status_code == 200


async def test_a_cut_connection_has_done_nothing(sandbox: Sandbox) -> None:
    await fault(sandbox, "cut", count=1)
    with pytest.raises(stripe.APIConnectionError):
        await create(sandbox)
    assert await customers(sandbox) == []


@pytest.mark.parametrize("seconds", [0.0, None])
async def test_a_lost_answer_has_done_it_once(sandbox: Sandbox, seconds: float | None) -> None:
    await fault(sandbox, "lost_answer", count=1, seconds=seconds)
    with pytest.raises(httpx.TransportError):
        await sandbox.http.post("/v1/customers", data={"name": "a"}, headers={"Idempotency-Key": "k1"}, timeout=0.5)
    (entry,) = (await sandbox.http.get("/_sandbox/requests")).json()
    assert (entry["status"], entry["fault"]) == (None, "lost_answer")
    assert (await raw(sandbox)).headers["idempotent-replayed"] == "true"
    assert await customers(sandbox) == ["a"]


async def test_a_delay_holds_the_answer(sandbox: Sandbox) -> None:
    await fault(sandbox, "delay", seconds=0.3, path="/v1/customers*")
    before = time.monotonic()
    await create(sandbox)
    assert time.monotonic() - before >= 0.3
    before = time.monotonic()
    await sandbox.stripe.v1.products.list_async({})
    assert time.monotonic() - before < 0.3, "another path"


async def test_a_sandbox_that_is_away_answers_nobody_and_sends_nothing(
    state_file: pathlib.Path, receiver: Receiver
) -> None:
    async with running(state_file, receiver.url) as sandbox:
        await fault(sandbox, "away")
        for path in ("/v1/customers", "/v1/nothing", "/checkout/cs_1"):
            with pytest.raises(httpx.TransportError):
                await sandbox.http.get(path)
        await sandbox.http.delete("/_sandbox/faults")
        await fault(sandbox, "webhook_delay", seconds=0.2)
        await create(sandbox)
        await fault(sandbox, "away")
        await asyncio.sleep(0.5)
        assert receiver.attempts == 0
        await sandbox.http.delete("/_sandbox/faults")
        await receiver.until(lambda: receiver.types() == ["customer.created"])


async def test_chance_is_repeatable(sandbox: Sandbox) -> None:
    async def statuses() -> list[int]:
        await sandbox.http.delete("/_sandbox/faults")
        await fault(sandbox, "unavailable", probability=0.5, seed=7, method="GET")
        return [(await sandbox.http.get("/v1/customers")).status_code for _ in range(30)]

    first = await statuses()
    assert set(first) == {200, 503}
    assert await statuses() == first


async def test_a_fault_strikes_as_often_as_it_is_told_and_can_be_taken_back(sandbox: Sandbox) -> None:
    await fault(sandbox, "unavailable", skip=1, count=2, path="/v1/customers")
    await fault(sandbox, "conflict", path="/v1/products")
    assert [(await sandbox.http.get("/v1/customers")).status_code for _ in range(5)] == [200, 503, 503, 200, 200]
    first, second = (await sandbox.http.get("/_sandbox/faults")).json()
    assert (first["struck"], second["struck"]) == (2, 0)
    left = await sandbox.http.delete(f"/_sandbox/faults/{second['id']}")
    assert [each["id"] for each in left.json()] == [first["id"]]
    assert (await sandbox.http.get("/v1/products")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [{"kind": "flood"}, {"kind": "cut", "probability": 2}, {"kind": "cut", "often": 1}, [{"kind": "cut"}] * 101, 7],
)
async def test_a_fault_that_makes_no_sense_is_refused(sandbox: Sandbox, body: Any) -> None:  # noqa: ANN401 - JSON
    assert (await sandbox.http.post("/_sandbox/faults", json=body)).status_code == 400
    assert (await sandbox.http.get("/_sandbox/faults")).json() == []


async def test_an_event_can_be_delivered_twice(state_file: pathlib.Path, receiver: Receiver) -> None:
    async with running(state_file, receiver.url) as sandbox:
        await fault(sandbox, "webhook_duplicate", path="customer.*")
        await create(sandbox)
        await receiver.until(lambda: len(receiver.accepted) == 2)
    assert receiver.accepted[0]["id"] == receiver.accepted[1]["id"]


async def test_events_can_be_delivered_in_another_order(state_file: pathlib.Path, receiver: Receiver) -> None:
    async with running(state_file, receiver.url) as sandbox:
        await fault(sandbox, "webhook_reorder", seconds=0.5, seed=3)
        for number in range(12):
            await sandbox.stripe.v1.customers.create_async({"name": str(number)})
        await receiver.until(lambda: len(receiver.accepted) == 12)
    names = [int(event["data"]["object"]["name"]) for event in receiver.accepted]
    assert names != sorted(names)
    assert sorted(names) == list(range(12))


async def test_a_dropped_event_comes_later_or_never(state_file: pathlib.Path, receiver: Receiver) -> None:
    async with running(state_file, receiver.url) as sandbox:
        await fault(sandbox, "webhook_drop", count=1)
        await fault(sandbox, "webhook_drop", path="product.*", never=True)
        await create(sandbox)
        await sandbox.stripe.v1.products.create_async({"name": "b"})
        step = await sandbox.http.post("/_sandbox/clock/step", json={"seconds": 0})
        assert step.json()["undelivered"] == 0
    assert receiver.types() == ["customer.created"]


async def test_faults_may_be_there_from_the_start(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "faults.json"
    file.write_text('[{"kind": "cut", "probability": 0.5, "seed": 3}]')
    (rule,) = faults.read(file)
    config = settings.Settings(1, tmp_path / "state", None, SECRET, faults_at_start=(rule,))
    assert faults.Faults(config.faults_at_start).shown() == [
        {"id": 1, "kind": "cut", "probability": 0.5, "seed": 3, "struck": 0}
    ]
    file.write_text('[{"kind": "flood"}]')
    with pytest.raises(ValueError, match="flood"):
        faults.read(file)
