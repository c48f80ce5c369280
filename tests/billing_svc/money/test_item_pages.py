"""A subscription whose list of items has further pages."""

import json
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing_svc.reconciliation import reconcile
from tests.billing_svc.money.ledger import ORIGIN, Ledger
from tests.billing_svc.subscriptions import dashboard

SUBSCRIPTIONS, ITEMS = "/v1/subscriptions", "/v1/subscription_items"


class Paged:
    """Stands before the sandbox: a subscription has a single item, the last, and its list has more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or scope["method"] != "GET" or not path.startswith((SUBSCRIPTIONS, ITEMS)):
            await self._app(scope, receive, send)
            return
        if path.startswith(ITEMS):
            asked = parse_qs(scope["query_string"].decode())
            own = {**scope, "path": f"{SUBSCRIPTIONS}/{asked['subscription'][0]}", "query_string": b""}
            items = (await self._answer({**own, "raw_path": own["path"].encode()}, receive))["items"]["data"]
            after = asked.get("starting_after", [""])[0]
            start = next((number + 1 for number, item in enumerate(items) if item["id"] == after), 0)
            page = {"object": "list", "url": ITEMS, "data": items[start : start + 1]}
            answer: Response = JSONResponse({**page, "has_more": start + 1 < len(items)})
        else:
            data = await self._answer(scope, receive)
            for one in data["data"] if data["object"] == "list" else [data]:
                one["items"] |= {"data": one["items"]["data"][-1:], "has_more": True}
            answer = JSONResponse(data)
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Any:  # noqa: ANN401 - JSON
        body = b""

        async def keep(message: Message) -> None:
            nonlocal body
            body += message.get("body", b"")

        await self._app(scope, Request(scope, receive).receive, keep)
        return json.loads(body)


async def test_every_base_item_is_found_on_whichever_page(tiers: Ledger) -> None:
    world = tiers.world
    (subscription,) = await tiers.at_stripe()
    await tiers.advance(seconds=10)
    await dashboard.add_item(world, subscription["id"], await dashboard.price_of(world, "tiers_big_monthly"))
    whole = world.sandbox.faults.app
    assert whole is not None
    world.sandbox.faults.app = Paged(whole)
    await tiers.work()
    assert (await tiers.told()).plan == "big"
    comparison = reconcile.Comparison(world.billing.transactions, tiers.catalogs, world.stripe, world.billing.clock)
    outcome = await comparison.run(ORIGIN, reconcile.Scope(), reconcile.RunOptions())
    assert [one.kind for one in outcome.findings] == ["items_differ", "two_plans"]
    await tiers.change(plan="small")
    assert (await tiers.told()).plan == "small"
    world.sandbox.faults.app = whole
    prices = [item["price"]["id"] for item in await dashboard.items_of(world, subscription["id"]) if "quantity" in item]
    assert prices == [await dashboard.price_of(world, "tiers_small_monthly")]
