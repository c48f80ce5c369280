"""Calls to Stripe: the only module that knows its SDK. Plain data goes in and comes out; errors are ours.

Never called inside a database transaction.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import stripe
import structlog

from billing_svc import errors
from billing_svc.settings import Settings

_log = structlog.get_logger(__name__)

# A caller waits for some of these calls; Stripe itself answers in well under a second.
ATTEMPT_SECONDS_MAX = 5.0
# Under one idempotency key, for connection errors, 409 and 5xx.
NETWORK_RETRIES = 2
# The most keys that Stripe takes in one listing of prices.
LOOKUP_KEYS_MAX = 10
PAGE_SIZE = 100

# An object of Stripe's as plain data.
Data: TypeAlias = Mapping[str, Any]


class NotAtStripe(Exception):
    """Stripe has no such object."""


class AnsweredServerError(errors.StripeUnavailable):
    """Stripe answered 5xx. It keeps that answer under the idempotency key, so the same key would get it again."""


class Stripe:
    """One account at Stripe, or the sandbox in its place."""

    def __init__(self, api_key: str, api_base: str | None) -> None:
        """`api_base` is the address of a stand-in; None means Stripe itself."""
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

        Raises StripeRefused if Stripe finds the request wrong, AnsweredServerError for a 5xx, and StripeUnavailable if
        the outcome is unknown or Stripe asks to wait.
        """
        method = self._writes[operation]
        return await _answer(method(dict(params), {"idempotency_key": idempotency_key}))

    async def subscription(self, subscription_id: str) -> Data:
        """Fetch a subscription; raises NotAtStripe."""
        return await _answer(self._client.v1.subscriptions.retrieve_async(subscription_id))

    async def checkout_session(self, session_id: str) -> Data:
        """Fetch a checkout session; raises NotAtStripe."""
        return await _answer(self._client.v1.checkout.sessions.retrieve_async(session_id))

    async def product(self, product_id: str) -> Data:
        """Fetch a product; raises NotAtStripe."""
        return await _answer(self._client.v1.products.retrieve_async(product_id))

    async def prices(self, lookup_keys: Sequence[str]) -> list[Data]:
        """Return the prices that hold any of the lookup keys."""
        found: list[Data] = []
        for start in range(0, len(lookup_keys), LOOKUP_KEYS_MAX):
            keys = list(lookup_keys[start : start + LOOKUP_KEYS_MAX])
            page = await _answer(self._client.v1.prices.list_async({"lookup_keys": keys, "limit": PAGE_SIZE}))
            found += page["data"]
        return found

    async def meters(self) -> list[Data]:
        """Return all active meters."""
        return await self._all(self._client.v1.billing.meters.list_async, {"status": "active"})

    async def customers_by_account(self, account_id: str) -> list[Data]:
        """Return the customers that carry our account in their metadata; not read-after-write."""
        escaped = account_id.replace("\\", "\\\\").replace("'", "\\'")
        query = f"metadata['account_id']:'{escaped}'"
        return list((await _answer(self._client.v1.customers.search_async({"query": query})))["data"])

    async def checkout_sessions_of(self, customer_id: str) -> list[Data]:
        """Return the checkout sessions of a customer."""
        return await self._all(self._client.v1.checkout.sessions.list_async, {"customer": customer_id})

    async def _all(self, list_page: Callable[..., Awaitable[stripe.StripeObject]], params: Data) -> list[Data]:
        found: list[Data] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = await _answer(list_page({**params, **after, "limit": PAGE_SIZE}))
            found += page["data"]
            if not page["has_more"]:
                return found


async def _answer(call: Awaitable[stripe.StripeObject]) -> Data:
    try:
        return (await call).to_dict()
    except stripe.InvalidRequestError as error:
        if error.http_status == 404:  # noqa: PLR2004 - not found
            raise NotAtStripe from error
        raise _refused(error) from error
    except stripe.CardError as error:
        raise _refused(error) from error
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        _log.exception("stripe_key_refused", code=error.code)
        raise errors.StripeUnavailable("Stripe does not accept this service's key", 60.0) from error
    except stripe.RateLimitError as error:
        raise errors.StripeUnavailable("Stripe asks to wait; send the same call again", 2.0) from error
    except stripe.APIConnectionError as error:
        raise errors.StripeUnavailable("Stripe cannot be reached; send the same call again", 2.0) from error
    except stripe.APIError as error:
        if error.http_status is not None and error.http_status >= 500:  # noqa: PLR2004 - server errors
            raise AnsweredServerError("Stripe failed; send the same call again", 2.0) from error
        raise errors.StripeUnavailable("Stripe is busy with this object; send the same call again", 1.0) from error


def _refused(error: stripe.StripeError) -> errors.StripeRefused:
    """Say which parameter Stripe refused; its own text may carry personal data and stays here."""
    param = getattr(error, "param", None) or ""
    return errors.StripeRefused(
        f"Stripe refused the request{f' for its parameter {param}' if param else ''}",
        {"stripe_code": error.code or "", "stripe_param": param},
    )
