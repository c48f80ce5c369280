"""Calls to Stripe: the only module that knows its SDK. Plain data goes in and comes out; errors are ours.

Never called inside a database transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeAlias

import stripe
import structlog

from billing_svc import errors
from billing_svc.settings import Settings

_log = structlog.get_logger(__name__)

# A caller waits for some of these calls; Stripe itself answers in well under a second. The SDK's bound holds for each
# step of an attempt, so the call as a whole has one of its own, below the server's deadline.
ATTEMPT_SECONDS_MAX = 4.0
CALL_SECONDS_MAX = 8.0
# Under one idempotency key, for connection errors, 409 and 5xx.
NETWORK_RETRIES = 2
# The most keys that Stripe takes in one listing of prices.
LOOKUP_KEYS_MAX = 10
PAGE_SIZE = 100

# An object of Stripe's as plain data.
Data: TypeAlias = Mapping[str, Any]


class NotAtStripe(Exception):
    """Stripe has no such object."""


class KeySpent(errors.StripeUnavailable):
    """The idempotency key gives nothing but this failure any more: Stripe keeps a 5xx as the answer under it."""


class Stripe:
    """One account at Stripe, or the sandbox in its place."""

    def __init__(self, api_key: str, api_base: str | None, call_seconds_max: float = CALL_SECONDS_MAX) -> None:
        """`api_base` is the address of a stand-in; None means Stripe itself."""
        self._call_seconds_max = call_seconds_max
        stripe.enable_telemetry = False  # it would write into the home directory
        self._http = stripe.HTTPXClient(timeout=ATTEMPT_SECONDS_MAX)
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base, "meter_events": api_base} if api_base else {},
            http_client=self._http,
            max_network_retries=NETWORK_RETRIES,
        )
        v1 = self._client.v1
        self._writes: Mapping[str, Callable[..., Awaitable[stripe.StripeObject]]] = {
            # Parameters beside the body are named as in the API's paths.
            "checkout.sessions.expire": lambda params, options: v1.checkout.sessions.expire_async(
                params["session"], {}, options
            ),
            "prices.deactivate": lambda params, options: v1.prices.update_async(
                params["price"], {"active": False}, options
            ),
            "customers.create": v1.customers.create_async,
            "checkout.sessions.create": v1.checkout.sessions.create_async,
            "products.create": v1.products.create_async,
            "prices.create": v1.prices.create_async,
            "billing.meters.create": v1.billing.meters.create_async,
        }

    @classmethod
    def from_settings(cls, settings: Settings) -> "Stripe":
        """Return the client that the settings describe."""
        return cls(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped

    async def write(self, operation: str, params: Data, idempotency_key: str) -> Data:
        """Carry out one write under the key and parameters of a stored intent, and return its object.

        Raises StripeRefused or NotAtStripe if Stripe finds the request wrong, KeySpent if the key will not do any more,
        and StripeUnavailable if the outcome is unknown or Stripe asks to wait.
        """
        method = self._writes[operation]
        return await self._answer(method(dict(params), {"idempotency_key": idempotency_key}))

    async def subscription(self, subscription_id: str) -> Data:
        """Fetch a subscription; raises NotAtStripe."""
        return await self._answer(self._client.v1.subscriptions.retrieve_async(subscription_id))

    async def checkout_session(self, session_id: str) -> Data:
        """Fetch a checkout session; raises NotAtStripe."""
        return await self._answer(self._client.v1.checkout.sessions.retrieve_async(session_id))

    async def product(self, product_id: str) -> Data:
        """Fetch a product; raises NotAtStripe."""
        return await self._answer(self._client.v1.products.retrieve_async(product_id))

    async def prices(self, lookup_keys: Sequence[str]) -> list[Data]:
        """Return the prices that hold any of the lookup keys."""
        found: list[Data] = []
        for start in range(0, len(lookup_keys), LOOKUP_KEYS_MAX):
            keys = list(lookup_keys[start : start + LOOKUP_KEYS_MAX])
            page = await self._answer(self._client.v1.prices.list_async({"lookup_keys": keys, "limit": PAGE_SIZE}))
            found += page["data"]
        return found

    async def meters(self) -> list[Data]:
        """Return all active meters."""
        return await self._all(self._client.v1.billing.meters.list_async, {"status": "active"})

    async def customers_of_account(self, account_id: str, since: datetime, until: datetime) -> list[Data]:
        """Return the customers made in an interval that carry our account in their metadata.

        Searching by metadata would be one request, but does not find what was made a moment ago.
        """
        created = {"gte": int(since.timestamp()), "lte": int(until.timestamp())}
        made = await self._all(self._client.v1.customers.list_async, {"created": created})
        return [customer for customer in made if (customer.get("metadata") or {}).get("account_id") == account_id]

    async def checkout_sessions_of(self, customer_id: str) -> list[Data]:
        """Return the checkout sessions of a customer."""
        return await self._all(self._client.v1.checkout.sessions.list_async, {"customer": customer_id})

    async def _all(self, list_page: Callable[..., Awaitable[stripe.StripeObject]], params: Data) -> list[Data]:
        found: list[Data] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = await self._answer(list_page({**params, **after, "limit": PAGE_SIZE}))
            found += page["data"]
            if not page["has_more"]:
                return found

    async def _answer(self, call: Awaitable[stripe.StripeObject]) -> Data:
        try:
            async with asyncio.timeout(self._call_seconds_max):
                return await _translated(call)
        except TimeoutError as error:
            raise errors.StripeUnavailable("Stripe took too long; send the same call again", 2.0) from error


async def _translated(call: Awaitable[stripe.StripeObject]) -> Data:
    """Return the answer as plain data, and raise what the SDK raises as our own."""
    try:
        return (await call).to_dict()
    except stripe.InvalidRequestError as error:
        if error.http_status == HTTPStatus.NOT_FOUND:
            raise NotAtStripe("Stripe has no such object") from error
        raise _refused(error) from error
    except stripe.CardError as error:
        raise _refused(error) from error
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        # Without the traceback: the SDK's text quotes a part of the key.
        _log.error("stripe_key_refused", code=error.code)
        raise errors.StripeUnavailable("Stripe does not accept this service's key", 60.0) from error
    except stripe.RateLimitError as error:
        raise errors.StripeUnavailable("Stripe asks to wait; send the same call again", 2.0) from error
    except stripe.APIConnectionError as error:
        raise errors.StripeUnavailable("Stripe cannot be reached; send the same call again", 2.0) from error
    except stripe.IdempotencyError as error:
        # Another release of ours sent the same intent in other words; the object may be there.
        raise KeySpent("Stripe knows this request in another form; send the same call again", 2.0) from error
    except stripe.APIError as error:
        if _is_kept(error):
            raise KeySpent("Stripe failed; send the same call again", 2.0) from error
        raise errors.StripeUnavailable("Stripe is busy with this object; send the same call again", 1.0) from error


def _is_kept(error: stripe.APIError) -> bool:
    """Say whether Stripe gives this failure again under the same key.

    Other 5xx come from what stands before Stripe, and leave open what became of the request: its key stays the only
    safe way to repeat it.
    """
    status = error.http_status or 0
    replayed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("idempotent-replayed")
    return status == HTTPStatus.INTERNAL_SERVER_ERROR or (
        status > HTTPStatus.INTERNAL_SERVER_ERROR and replayed == "true"
    )


def _refused(error: stripe.StripeError) -> errors.StripeRefused:
    """Say which parameter Stripe refused; its own text may carry personal data and stays here."""
    param = getattr(error, "param", None) or ""
    return errors.StripeRefused(
        f"Stripe refused the request{f' for its parameter {param}' if param else ''}",
        {"stripe_code": error.code or "", "stripe_param": param},
    )
