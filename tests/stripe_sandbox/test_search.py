"""Search: its language, its pages, and that it lags behind writes."""

from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

LAG = 60


async def wait(sandbox: Sandbox, seconds: int = LAG) -> None:
    answer = await sandbox.http.post("/_sandbox/clock/advance", json={"seconds": seconds, "pause_seconds": 0})
    assert answer.status_code == 200


async def found(sandbox: Sandbox, query: str) -> list[str]:
    """Return the names of the customers found, newest first."""
    return [str(one.name) for one in (await sandbox.stripe.v1.customers.search_async({"query": query})).data]


async def add(sandbox: Sandbox, name: str, **more: Any) -> stripe.Customer:  # noqa: ANN401 - parameters
    params: Any = {"name": name, **more}
    return await sandbox.stripe.v1.customers.create_async(params)


async def test_a_new_customer_is_found_a_minute_later(sandbox: Sandbox) -> None:
    await add(sandbox, "One", metadata={"account_id": "org_1"})
    query = 'metadata["account_id"]:"org_1"'
    assert await found(sandbox, query) == []
    await wait(sandbox, LAG - 10)
    assert await found(sandbox, query) == []
    await wait(sandbox, 20)
    assert await found(sandbox, query) == ["One"]


async def test_a_changed_customer_is_found_by_what_it_was(sandbox: Sandbox) -> None:
    customer = await add(sandbox, "One", email="old@example.com")
    await wait(sandbox)
    await sandbox.stripe.v1.customers.update_async(customer.id, {"email": "new@example.com"})
    assert await found(sandbox, 'email:"old@example.com"') == ["One"]
    assert await found(sandbox, 'email:"new@example.com"') == []
    await wait(sandbox)
    assert await found(sandbox, 'email:"old@example.com"') == []
    assert await found(sandbox, 'email:"new@example.com"') == ["One"]
    await sandbox.stripe.v1.customers.delete_async(customer.id)
    assert await found(sandbox, 'email:"new@example.com"') == ["One"], "deleted, and still found"
    await wait(sandbox)
    assert await found(sandbox, 'email:"new@example.com"') == []


async def test_the_lag_can_be_set(sandbox: Sandbox) -> None:
    await sandbox.http.post("/_sandbox/delays", json={"search": 0})
    await add(sandbox, "One")
    assert await found(sandbox, 'name:"One"') == ["One"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ('email:"A@EXAMPLE.com"', ["Ann"]),
        ('email~"example"', ["Ben", "Ann"]),
        ("name:'Ann' OR name:'Ben'", ["Ben", "Ann"]),
        ('email~"example" AND -name:"Ann"', ["Ben"]),
        ('email~"example" metadata["account_id"]:"org:\\"1\\""', ["Ann"]),
        ("metadata['account_id']:null", ["Cleo", "Ben"]),
        ("email:null AND created>1000", ["Cleo"]),
        ("created<1000", []),
    ],
)
async def test_the_language(sandbox: Sandbox, query: str, names: list[str]) -> None:
    await add(sandbox, "Ann", email="a@example.com", metadata={"account_id": 'org:"1"'})
    await add(sandbox, "Ben", email="b@example.com")
    await add(sandbox, "Cleo")
    await wait(sandbox)
    assert await found(sandbox, query) == names


@pytest.mark.parametrize(
    "query",
    [
        "",
        "nonsense",
        'email="a"',
        'email:"a" AND name:"b" OR name:"c"',
        'balance:"1"',
        "email:5",
        'created:"5"',
        "name>1",
    ],
)
async def test_an_unclear_query_is_refused(sandbox: Sandbox, query: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await found(sandbox, query)
    assert (caught.value.http_status, caught.value.param) == (400, "query")


async def test_pages(sandbox: Sandbox) -> None:
    for number in range(5):
        await add(sandbox, f"C{number}", metadata={"of": "us"})
    await wait(sandbox)
    search = sandbox.stripe.v1.customers.search_async
    first = await search({"query": 'metadata["of"]:"us"', "limit": 2})
    shown = first.to_dict()
    assert (shown["object"], shown["has_more"], shown["url"]) == ("search_result", True, "/v1/customers/search")
    assert [one.name async for one in first.auto_paging_iter()] == ["C4", "C3", "C2", "C1", "C0"]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await search({"query": 'metadata["of"]:"us"', "page": "page_other"})
    assert caught.value.param == "page"


async def test_subscriptions_are_found_by_status_and_metadata(sandbox: Sandbox, offer: Offer) -> None:
    api = sandbox.stripe.v1
    customer = await add(sandbox, "One")
    made = await api.subscriptions.create_async(
        {"customer": customer.id, "items": [{"price": offer.metered}], "metadata": {"account_id": "org_1"}}
    )
    await wait(sandbox)
    active = 'status:"active" AND metadata["account_id"]:"org_1"'
    await api.subscriptions.cancel_async(made.id)
    (one,) = (await api.subscriptions.search_async({"query": active})).data
    assert (one.id, one.items.data[0].price.id) == (made.id, offer.metered)
    await wait(sandbox)
    assert (await api.subscriptions.search_async({"query": active})).data == []
