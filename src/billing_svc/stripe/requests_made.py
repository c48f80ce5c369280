"""Every HTTP request to Stripe passes here, also the SDK's repeats: it waits for its turn and is counted."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urlsplit

from billing_svc.platform.monitoring import metrics
from billing_svc.stripe import call_limits

# Body, status and headers, as the SDK has them.
Answer: TypeAlias = tuple[bytes, int, Mapping[str, str]]

# The words of the paths that we call; each other part is an id. So an endpoint's name never contains one.
_WORDS = frozenset(
    {
        "v1",
        "v2",
        "add_lines",
        "billing",
        "billing_portal",
        "checkout",
        "configurations",
        "core",
        "create_preview",
        "customers",
        "event_summaries",
        "events",
        "expire",
        "invoiceitems",
        "invoices",
        "lines",
        "meter_events",
        "meters",
        "payment_methods",
        "prices",
        "products",
        "reactivate",
        "release",
        "sessions",
        "subscription_items",
        "subscription_schedules",
        "subscriptions",
    }
)
_CODE = re.compile("[a-z_]{1,64}")


class RequestsMade:
    """Paces and counts requests; without limits a request never waits."""

    def __init__(
        self, counted: metrics.StripeRequests | None = None, limits: call_limits.CallLimits | None = None
    ) -> None:
        self._counted = counted
        self._limits = limits

    async def make(self, method: str, url: str, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """Send a request when its turn has come. Raises StripeUnavailable and Unavailable as `CallLimits.wait` does."""
        endpoint = endpoint_of(url)
        if self._limits is not None:
            await self._limits.wait(f"{method.upper()} {endpoint}")
        if self._counted is None:
            return await send()
        self._counted.sent(method.upper(), endpoint)
        body, status, headers = await send()
        if status >= HTTPStatus.BAD_REQUEST:
            self._counted.refused(method.upper(), endpoint, status, _code(body))
        return body, status, headers


def endpoint_of(url: str) -> str:
    """Return the path of a URL, with each id replaced: `/v1/invoices/:id/lines`."""
    return "/".join(part if part in _WORDS or not part else ":id" for part in urlsplit(url).path.split("/"))


def _code(body: bytes) -> str:
    """Return the error's code, or its type if it has none; empty if the body is not Stripe's."""
    try:
        error = json.loads(body)["error"]
        code = str(error.get("code") or error.get("type") or "")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""
    return code if _CODE.fullmatch(code) else ""
