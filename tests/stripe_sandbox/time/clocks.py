"""The sandbox's clock, and an action that is due at a time of that clock."""

from typing import Any

from tests.stripe_sandbox.conftest import Sandbox

HOUR = 3600


async def session(sandbox: Sandbox, price: str, expires_at: int) -> str:
    made = await sandbox.stripe.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "line_items": [{"price": price, "quantity": 1}],
            "expires_at": expires_at,
        }
    )
    return made.id


async def clock(sandbox: Sandbox) -> dict[str, Any]:
    answer: dict[str, Any] = (await sandbox.http.get("/_sandbox/clock")).json()
    return answer
