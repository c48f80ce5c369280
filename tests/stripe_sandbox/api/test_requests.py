import asyncio
import pathlib
import sqlite3

import httpx
import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def post(sandbox: Sandbox, path: str, form: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await sandbox.http.post(path, content=form, headers={**FORM, **named})


async def test_only_a_test_key_is_let_in(sandbox: Sandbox) -> None:
    for key in ("", "Bearer sk_live_1", "Bearer nothing", "sk_test_1"):
        answer = await sandbox.http.get("/v1/customers", headers={"Authorization": key})
        assert answer.status_code == 401, key
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["request-id"].startswith("req_")


async def test_an_unknown_route_is_answered_in_stripes_form(sandbox: Sandbox) -> None:
    for method, path in (("GET", "/v1/nothing"), ("DELETE", "/v1/prices/price_1"), ("GET", "/nothing")):
        answer = await sandbox.http.request(method, path)
        assert answer.status_code == 404, path
        assert "Unrecognized request URL" in answer.json()["error"]["message"]


# Path, form, and the parameter that the refusal names. BASE and METERED stand for the offer's prices.
WRONG = [
    (
        "/v1/checkout/sessions",
        "mode=subscription&success_url=https://a.example&line_items[0][price]=BASE",
        "line_items[0][quantity]",
    ),
    (
        "/v1/checkout/sessions",
        "CHECKOUT&success_url=https://a.example&allow_promotion_codes=true",
        "allow_promotion_codes",
    ),
    ("/v1/customers", "nmae=x", "nmae"),
    ("/v1/customers", "email=nobody", "email"),
    ("/v1/customers", "name=", "name"),
    ("/v1/customers", "name[a]=x", "name"),
    ("/v1/customers", f"metadata[{'k' * 41}]=x", f"metadata[{'k' * 41}]"),
    ("/v1/customers", f"metadata[k]={'v' * 501}", "metadata[k]"),
    ("/v1/customers", "&".join(f"metadata[{number}]=x" for number in range(51)), "metadata"),
    ("/v1/customers", "shipping[name]=a&shipping[address][line1]=b", "shipping[address][line1]"),
    ("/v1/products", "id=p", "name"),
    ("/v1/prices", "currency=usd&unit_amount=1", "product"),
    ("/v1/prices", "currency=usd&unit_amount=ten&product=nyqst_pro", "unit_amount"),
    ("/v1/prices", "currency=usd&unit_amount=-1&product=nyqst_pro", "unit_amount"),
    ("/v1/prices", "currency=usd&product=nyqst_pro", "unit_amount"),
    ("/v1/prices", "currency=usd&product=nyqst_pro&unit_amount=1&unit_amount_decimal=1", "unit_amount"),
    ("/v1/prices", f"currency=usd&product=nyqst_pro&unit_amount_decimal=0.{'1' * 13}", "unit_amount_decimal"),
    ("/v1/prices", "currency=dollars&product=nyqst_pro&unit_amount=1", "currency"),
    ("/v1/prices", "currency=usd&product=nothing&unit_amount=1", "product"),
    ("/v1/prices", "currency=usd&product=nyqst_pro&unit_amount=1&active=yes", "active"),
    ("/v1/prices", "currency=usd&product=nyqst_pro&unit_amount=1&recurring[interval]=moon", "recurring[interval]"),
    (
        "/v1/prices",
        "currency=usd&product=nyqst_pro&unit_amount=1&recurring[interval]=month&recurring[usage_type]=metered",
        "recurring[meter]",
    ),
    ("/v1/prices/BASE", "unit_amount=1", "unit_amount"),
    ("/v1/prices/BASE", "recurring[interval]=year", "recurring"),
    ("/v1/checkout/sessions", "success_url=https://a.example&line_items[0][price]=BASE", "mode"),
    ("/v1/checkout/sessions", "mode=subscription&line_items[0][price]=BASE", "success_url"),
    ("/v1/checkout/sessions", "mode=subscription&success_url=https://a.example", "line_items"),
    ("/v1/checkout/sessions", "CHECKOUT&success_url=javascript:alert(1)", "success_url"),
    ("/v1/checkout/sessions", "CHECKOUT&success_url=https://a.example&cancel_url=//b", "cancel_url"),
    ("/v1/checkout/sessions", "CHECKOUT&success_url=https://a.example&customer=cus_nobody", "customer"),
    ("/v1/checkout/sessions", "CHECKOUT&success_url=https://a.example&customer_email=x", "customer_email"),
    ("/v1/checkout/sessions", "CHECKOUT&success_url=https://a.example&expires_at=1", "expires_at"),
    (
        "/v1/checkout/sessions",
        "CHECKOUT&success_url=https://a.example&line_items[1][price]=METERED&line_items[1][quantity]=1",
        "line_items[1][quantity]",
    ),
    (
        "/v1/checkout/sessions",
        "mode=subscription&success_url=https://a.example&line_items[0][price]=BASE&line_items[0][quantity]=0",
        "line_items[0][quantity]",
    ),
    (
        "/v1/checkout/sessions",
        "CHECKOUT&success_url=https://a.example&line_items[0][qty]=1",
        "line_items[0][qty]",
    ),
    (
        "/v1/checkout/sessions",
        "CHECKOUT&success_url=https://a.example&subscription_data[trial_period_days]=0",
        "subscription_data[trial_period_days]",
    ),
    ("/v1/billing/meter_events", "event_name=e&payload[value]=1", "payload[stripe_customer_id]"),
    ("/v1/billing/meter_events", "event_name=e&payload[stripe_customer_id]=c&payload[value]=1.5", "payload[value]"),
]


async def test_a_wrong_parameter_is_named(sandbox: Sandbox, offer: Offer) -> None:
    named = {}
    for path, form, _ in WRONG:
        full = form.replace("CHECKOUT", "mode=subscription&line_items[0][price]=BASE&line_items[0][quantity]=1")
        full = full.replace("BASE", offer.base).replace("METERED", offer.metered)
        answer = await post(sandbox, path.replace("BASE", offer.base), full)
        error = answer.json().get("error", {})
        named[path, form] = (answer.status_code, error.get("type"), error.get("param"))
    assert named == {(path, form): (400, "invalid_request_error", param) for path, form, param in WRONG}


async def test_a_checkout_without_a_recurring_price_is_refused(sandbox: Sandbox, offer: Offer) -> None:
    once = await sandbox.stripe.v1.prices.create_async(
        {"product": offer.product, "currency": "usd", "unit_amount": 100}
    )
    with pytest.raises(stripe.InvalidRequestError, match="at least one recurring price"):
        await sandbox.stripe.v1.checkout.sessions.create_async(
            {
                "mode": "subscription",
                "success_url": "https://a.example",
                "line_items": [{"price": once.id, "quantity": 1}],
            }
        )


async def test_hostile_forms_are_refused(sandbox: Sandbox) -> None:
    for form in ("a" + "[b]" * 40 + "=1", "name=a&name=b", "[a]=1", "name=%ff", "name=a&name[b]=c", "a[=1"):
        assert (await post(sandbox, "/v1/customers", form)).status_code == 400, form
    many = "&".join(f"metadata[{number}]=x" for number in range(3000))
    assert (await post(sandbox, "/v1/customers", many)).status_code == 400
    assert (await post(sandbox, "/v1/customers", "name=" + "x" * 2**21)).status_code == 400
    assert (await sandbox.http.post("/v1/customers", json={"name": "x"})).status_code == 400


async def test_another_site_cannot_reach_the_pages_under_its_own_name(sandbox: Sandbox) -> None:
    assert (await sandbox.http.get("/_sandbox/requests", headers={"Host": "evil.example"})).status_code == 400


async def test_the_same_key_gives_the_same_answer(sandbox: Sandbox) -> None:
    first = await post(sandbox, "/v1/customers", "name=a", Idempotency_Key="k1")
    again = await post(sandbox, "/v1/customers", "name=a", Idempotency_Key="k1")
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    assert len((await sandbox.stripe.v1.customers.list_async({})).data) == 1


async def test_the_same_key_with_other_parameters_is_an_error(sandbox: Sandbox) -> None:
    options: stripe.RequestOptions = {"idempotency_key": "k1"}
    await sandbox.stripe.v1.customers.create_async({"name": "a"}, options)
    with pytest.raises(stripe.IdempotencyError):
        await sandbox.stripe.v1.customers.create_async({"name": "b"}, options)
    with pytest.raises(stripe.IdempotencyError):
        await sandbox.stripe.v1.products.create_async({"name": "a"}, options)


async def test_a_key_in_use_is_a_conflict(sandbox: Sandbox, state_file: pathlib.Path) -> None:
    with sqlite3.connect(state_file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")  # keeps the first request waiting in its transaction
        first = asyncio.create_task(post(sandbox, "/v1/customers", "name=a", Idempotency_Key="k1"))
        while not (await sandbox.http.get("/_sandbox/requests")).json():
            pass
        second = await post(sandbox, "/v1/customers", "name=a", Idempotency_Key="k1")
        other.execute("ROLLBACK")
    other.close()
    assert (second.status_code, second.json()["error"]["type"]) == (409, "idempotency_error")
    assert (await first).status_code == 200
    third = await post(sandbox, "/v1/customers", "name=a", Idempotency_Key="k1")
    assert third.json() == (await first).json()


async def test_a_failed_validation_does_not_use_up_the_key(sandbox: Sandbox) -> None:
    assert (await post(sandbox, "/v1/customers", "email=x", Idempotency_Key="k1")).status_code == 400
    assert (await post(sandbox, "/v1/customers", "email=x@y.example", Idempotency_Key="k1")).status_code == 200


async def test_a_refusal_that_execution_met_is_kept(sandbox: Sandbox) -> None:
    price = "currency=usd&unit_amount=1&product=later"
    assert (await post(sandbox, "/v1/prices", price, Idempotency_Key="k1")).status_code == 400
    await sandbox.stripe.v1.products.create_async({"id": "later", "name": "Later"})
    replayed = await post(sandbox, "/v1/prices", price, Idempotency_Key="k1")
    assert (replayed.status_code, replayed.headers["idempotent-replayed"]) == (400, "true")


async def test_every_request_is_in_the_log(sandbox: Sandbox) -> None:
    made = await post(sandbox, "/v1/customers", "metadata[a]=b", Idempotency_Key="k1")
    await sandbox.http.get("/v1/customers/cus_nobody")
    first, second = (await sandbox.http.get("/_sandbox/requests")).json()
    assert first.pop("at") >= made.json()["created"]
    assert first == {
        "method": "POST",
        "path": "/v1/customers",
        "idempotency_key": "k1",
        "params": {"metadata": {"a": "b"}},
        "status": 200,
        "replayed": False,
        "object": made.json()["id"],
        "fault": None,
    }
    assert "sk_test_" not in str((first, second))
    assert (second["path"], second["status"]) == ("/v1/customers/cus_nobody", 404)
