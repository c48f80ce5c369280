"""Calls of Stripe: the only module that imports its SDK. Takes and returns plain data; raises our own errors.

Never called inside a database transaction.
"""

import asyncio
import email.utils
import functools
import json
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeAlias

import stripe
import structlog

from billing_svc.platform import errors
from billing_svc.platform.database import transactions
from billing_svc.platform.monitoring import metrics
from billing_svc.platform.settings import Settings
from billing_svc.stripe import call_limits, pages, parse, refusals, requests_made

_log = structlog.get_logger(__name__)

# A caller waits for some of these calls; Stripe usually answers in well under a second. The SDK's timeout applies to
# each step of an attempt, so the call as a whole has its own bound, below the server's deadline.
ATTEMPT_SECONDS_MAX = 4.0
CALL_SECONDS_MAX = 8.0
# Repeats under the same idempotency key, for connection errors, 409 and 5xx.
NETWORK_RETRIES = 2
# Stripe accepts at most so many lookup keys in a listing of prices.
LOOKUP_KEYS_MAX = 10

Data: TypeAlias = parse.Data


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """Usage of a customer for a meter; Stripe does not count a second event with the same identifier."""

    event_name: str
    customer_id: str
    units: int
    reported_for: datetime
    identifier: str


class NotAtStripe(errors.BillingError):
    """Stripe has no such object."""

    code = errors.StripeRefused.code
    reason = errors.StripeRefused.reason


class NotReadable(errors.StripeUnavailable):
    """The SDK cannot parse the answer, for example a price that is not a number; the outcome of a write is unknown."""


class KeySpent(errors.StripeUnavailable):
    """A call with this idempotency key will always fail: Stripe stored a 5xx as the key's answer."""


class _HTTPClient(stripe.HTTPXClient):
    """The SDK's HTTP client, with each request passing through `RequestsMade`."""

    def __init__(self, requests: requests_made.RequestsMade) -> None:
        super().__init__(timeout=ATTEMPT_SECONDS_MAX)
        self._requests = requests
        # Stripe rations reads.
        self.reads = 0

    async def request_async(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: Any = None,  # noqa: ANN401 - the SDK's own
    ) -> requests_made.Answer:
        self.reads += method.upper() == "GET"
        send = functools.partial(super().request_async, method, url, headers, post_data)
        return await self._requests.make(method, url, send)


class Stripe:
    """An account at Stripe, or the sandbox in its place."""

    def __init__(
        self,
        api_key: str,
        api_base: str | None,
        call_seconds_max: float = CALL_SECONDS_MAX,
        requests: requests_made.RequestsMade | None = None,
    ) -> None:
        """`api_base` is the address of a stand-in; None means Stripe itself."""
        self._call_seconds_max = call_seconds_max
        stripe.enable_telemetry = False  # the SDK would write into the home directory
        self._http = _HTTPClient(requests or requests_made.RequestsMade())
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base, "meter_events": api_base} if api_base else {},
            http_client=self._http,
            max_network_retries=NETWORK_RETRIES,
        )
        v1 = self._client.v1
        self._writes: Mapping[str, Callable[..., Awaitable[stripe.StripeObject]]] = {
            # Parameters that are not in the body have the names that the API's paths use.
            "checkout.sessions.expire": lambda params, options: v1.checkout.sessions.expire_async(
                params["session"], {}, options
            ),
            "prices.deactivate": lambda params, options: v1.prices.update_async(
                params["price"], {"active": False}, options
            ),
            "subscriptions.update": lambda params, options: v1.subscriptions.update_async(
                params["subscription"], _but(params, "subscription"), options
            ),
            "subscriptions.cancel": lambda params, options: v1.subscriptions.cancel_async(
                params["subscription"], _but(params, "subscription"), options
            ),
            "subscription_schedules.update": lambda params, options: v1.subscription_schedules.update_async(
                params["schedule"], _but(params, "schedule"), options
            ),
            "subscription_schedules.release": lambda params, options: v1.subscription_schedules.release_async(
                params["schedule"], {}, options
            ),
            "subscriptions.create": v1.subscriptions.create_async,
            "subscription_schedules.create": v1.subscription_schedules.create_async,
            "billing_portal.sessions.create": v1.billing_portal.sessions.create_async,
            "customers.create": v1.customers.create_async,
            "checkout.sessions.create": v1.checkout.sessions.create_async,
            "products.create": v1.products.create_async,
            "products.update": lambda params, options: v1.products.update_async(
                params["product"], _but(params, "product"), options
            ),
            "billing.meters.update": lambda params, options: v1.billing.meters.update_async(
                params["meter"], _but(params, "meter"), options
            ),
            "billing.meters.reactivate": lambda params, options: v1.billing.meters.reactivate_async(
                params["meter"], {}, options
            ),
            "billing_portal.configurations.create": v1.billing_portal.configurations.create_async,
            "billing_portal.configurations.update": lambda params, options: (
                v1.billing_portal.configurations.update_async(
                    params["configuration"], _but(params, "configuration"), options
                )
            ),
            "prices.create": v1.prices.create_async,
            "billing.meters.create": v1.billing.meters.create_async,
            "invoiceitems.create": v1.invoice_items.create_async,
            "invoices.create": v1.invoices.create_async,
            "invoices.update": lambda params, options: v1.invoices.update_async(
                params["invoice"], _but(params, "invoice"), options
            ),
            "invoices.add_lines": lambda params, options: v1.invoices.add_lines_async(
                params["invoice"], _but(params, "invoice"), options
            ),
        }

    @classmethod
    def from_settings(cls, settings: Settings, counted: metrics.StripeRequests | None = None) -> "Stripe":
        """Return a client for calls that somebody waits for: they are made at once."""
        requests = requests_made.RequestsMade(counted)
        return cls(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base, requests=requests)

    @classmethod
    def paced(
        cls,
        settings: Settings,
        database: transactions.Transactions,
        counted: metrics.StripeRequests | None = None,
    ) -> "Stripe":
        """Return a client for work in the background: its calls keep to BILLING_STRIPE_CALLS_PER_SECOND.

        All such clients share the limit, in all processes.
        """
        limits = call_limits.CallLimits(database, settings.stripe_calls_per_second)
        requests = requests_made.RequestsMade(counted, limits)
        call_seconds_max = CALL_SECONDS_MAX + call_limits.WAIT_SECONDS_MAX
        return cls(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base, call_seconds_max, requests)

    @property
    def reads(self) -> int:
        """Return how many reads this client has made, with the SDK's repeats."""
        return self._http.reads

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped

    async def write(self, operation: str, params: Data, idempotency_key: str) -> Data:
        """Make a write with the key and parameters of a stored intent, and return its object.

        Raises StripeRefused or NotAtStripe if Stripe rejects the request, KeySpent if the key cannot be used any more,
        and StripeUnavailable if the outcome is unknown or Stripe asks to wait.
        """
        method = self._writes[operation]
        return await self._answer(method(dict(params), {"idempotency_key": idempotency_key}), params)

    # Customers, and how they buy.

    async def customer(self, customer_id: str) -> Data:
        """Fetch a customer; raises NotAtStripe."""
        return await self._answer(self._client.v1.customers.retrieve_async(customer_id))

    async def customer_ids(self) -> list[str]:
        """Return the ids of all customers that are not deleted."""
        return [str(customer["id"]) for customer in await self._all(self._client.v1.customers.list_async, {})]

    async def payment_methods_of(self, customer_id: str) -> list[Data]:
        """Return the first page of a customer's payment methods."""
        list_page = self._client.v1.customers.payment_methods.list_async
        page = await self._answer(list_page(customer_id, {"limit": pages.PAGE_SIZE}))
        return pages.elements(page, "payment methods")[0]

    async def customers_of_account(self, account_id: str, since: datetime, until: datetime) -> list[Data]:
        """Return the customers created in an interval whose metadata has our account.

        A search by metadata would need only one request, but does not find objects that were just created.
        """
        created = {"gte": int(since.timestamp()), "lte": int(until.timestamp())}
        made = await self._all(self._client.v1.customers.list_async, {"created": created})
        return [customer for customer in made if parse.nested(customer, "metadata", "account_id") == account_id]

    async def checkout_session(self, session_id: str) -> Data:
        """Fetch a checkout session, with its customer expanded; raises NotAtStripe."""
        fetch: Callable[..., Awaitable[stripe.StripeObject]] = self._client.v1.checkout.sessions.retrieve_async
        return await self._answer(fetch(session_id, {"expand": ["customer"]}))

    async def checkout_sessions_of(self, customer_id: str) -> list[Data]:
        """Return the checkout sessions of a customer."""
        return await self._all(self._client.v1.checkout.sessions.list_async, {"customer": customer_id})

    async def portal_configurations(self) -> list[Data]:
        """Return all configurations of the portal."""
        return await self._all(self._client.v1.billing_portal.configurations.list_async, {})

    # Subscriptions.

    async def subscription(self, subscription_id: str) -> Data:
        """Fetch a subscription, with its schedule expanded; raises NotAtStripe."""
        found = await self._get(f"/v1/subscriptions/{_in_path(subscription_id)}", {"expand": ["schedule"]})
        return await self._with_all_items(found)

    async def subscriptions_of(self, customer_id: str) -> list[Data]:
        """Return all subscriptions of a customer, also those that are over."""
        return await self._all(self._client.v1.subscriptions.list_async, {"customer": customer_id, "status": "all"})

    async def every_subscription(self, customer_id: str | None) -> list[Data]:
        """Return all subscriptions, or a customer's, with their schedules expanded; also those that are over."""
        params: dict[str, Any] = {"status": "all", "expand": ["data.schedule"]}
        if customer_id is not None:
            params["customer"] = customer_id
        found = await self._get_all("/v1/subscriptions", params)
        return [await self._with_all_items(subscription) for subscription in found]

    async def _with_all_items(self, subscription: Data) -> Data:
        """Return a subscription with the items of all pages; Stripe includes only the first page."""
        items = subscription.get("items")
        if not isinstance(items, dict) or not items.get("has_more"):
            return subscription
        every = await self._get_all("/v1/subscription_items", {"subscription": subscription["id"]})
        return {**subscription, "items": {**items, "data": every, "has_more": False}}

    async def schedule(self, schedule_id: str) -> Data:
        """Fetch a subscription schedule; raises NotAtStripe."""
        return await self._answer(self._client.v1.subscription_schedules.retrieve_async(schedule_id))

    # Invoices.

    async def invoice(self, invoice_id: str) -> Data:
        """Fetch an invoice, with its first page of lines; raises NotAtStripe."""
        return await self._get(f"/v1/invoices/{_in_path(invoice_id)}", {})

    async def invoice_lines(self, invoice_id: str, after: str) -> Data:
        """Return the page of an invoice's lines that follows the line `after`. Raises StripeObjectUnreadable."""
        try:
            path = f"/v1/invoices/{_in_path(invoice_id)}/lines"
            return await self._get(path, {"limit": pages.PAGE_SIZE, "starting_after": after})
        except NotAtStripe as error:
            # The invoice was just there: a line was removed meanwhile, or Stripe's pages do not fit together.
            raise errors.StripeObjectUnreadable(
                f"invoice {invoice_id}: lines: Stripe has no page after the line {after}",
                {"object": f"invoice {invoice_id}", "field": "lines"},
            ) from error

    async def all_invoice_lines(self, invoice: Data) -> list[Data]:
        """Return all lines of a fetched invoice, which has only the first page. Raises StripeObjectUnreadable."""
        about = parse.named(invoice, "invoice")
        found, more = pages.elements(parse.nested(invoice, "lines"), f"{about}: lines")
        lines = list(found)
        while more:
            page = await self.invoice_lines(str(invoice["id"]), pages.last_id(lines, f"{about}: lines"))
            found, more = pages.elements(page, f"{about}: lines")
            lines += found
        return lines

    async def every_invoice(self, customer_id: str | None, since: datetime) -> list[Data]:
        """Return all invoices, or a customer's, that were created since an instant, newest first."""
        params: dict[str, Any] = {"created": {"gte": int(since.timestamp())}}
        if customer_id is not None:
            params["customer"] = customer_id
        return await self._get_all("/v1/invoices", params)

    async def invoices_of_subscription(self, subscription_id: str, since: datetime) -> list[Data]:
        """Return the invoices of a subscription that were created since an instant, newest first."""
        params = {"subscription": subscription_id, "created": {"gte": int(since.timestamp())}}
        return await self._get_all("/v1/invoices", params)

    async def preview_invoice(self, params: Data) -> Data:
        """Return the invoice that a change would create, with its first page of lines; creates nothing."""
        preview: Callable[..., Awaitable[stripe.StripeObject]] = self._client.v1.invoices.create_preview_async
        return await self._answer(preview(dict(params)), params)

    async def invoice_item(self, item_id: str) -> Data:
        """Fetch an invoice item; raises NotAtStripe."""
        return await self._answer(self._client.v1.invoice_items.retrieve_async(item_id))

    async def invoice_items_of(self, customer_id: str, since: datetime) -> list[Data]:
        """Return the invoice items of a customer that were created since an instant."""
        params = {"customer": customer_id, "created": {"gte": int(since.timestamp())}}
        return await self._all(self._client.v1.invoice_items.list_async, params)

    # Products, prices and meters.

    async def products(self, ids: Sequence[str]) -> list[Data]:
        """Return the products with these ids; ids that Stripe does not have are left out."""
        found: list[Data] = []
        for start in range(0, len(ids), pages.PAGE_SIZE):
            params: Data = {"ids": list(ids[start : start + pages.PAGE_SIZE]), "limit": pages.PAGE_SIZE}
            list_page: Callable[..., Awaitable[stripe.StripeObject]] = self._client.v1.products.list_async
            found += pages.elements(await self._answer(list_page(params)), "products")[0]
        return found

    async def prices(self, lookup_keys: Sequence[str]) -> list[Data]:
        """Return the prices that have any of the lookup keys."""
        found: list[Data] = []
        for start in range(0, len(lookup_keys), LOOKUP_KEYS_MAX):
            keys = list(lookup_keys[start : start + LOOKUP_KEYS_MAX])
            params: Data = {"lookup_keys": keys, "limit": pages.PAGE_SIZE}
            list_page: Callable[..., Awaitable[stripe.StripeObject]] = self._client.v1.prices.list_async
            page = await self._answer(list_page(params))
            found += pages.elements(page, "prices")[0]
        return found

    async def meters(self) -> list[Data]:
        """Return all active meters."""
        return [meter for meter in await self.all_meters() if parse.nested(meter, "status") == "active"]

    async def meter_ids(self) -> dict[str, list[str]]:
        """Return the meters by event name: a deactivated meter keeps its units, and a new meter may get its name."""
        found: dict[str, list[str]] = {}
        for meter in await self.all_meters():
            event_name, meter_id = (parse.optional_text(parse.nested(meter, name)) for name in ("event_name", "id"))
            if event_name and meter_id:  # a meter whose name cannot be read is none of ours
                found.setdefault(event_name, []).append(meter_id)
        return found

    async def all_meters(self) -> list[Data]:
        """Return all meters, also deactivated meters."""
        return await self._all(self._client.v1.billing.meters.list_async, {})

    # Usage.

    async def meter_event(self, event: MeterEvent, idempotency_key: str) -> None:
        """Report usage. If the meter already has an event with this identifier, that is a success too.

        Raises StripeRefused if Stripe rejects the event, and StripeUnavailable if the outcome is unknown.
        """
        params = {
            "event_name": event.event_name,
            "identifier": event.identifier,
            "payload": {"stripe_customer_id": event.customer_id, "value": str(event.units)},
            "timestamp": int(event.reported_for.timestamp()),
        }
        create: Callable[..., Awaitable[stripe.StripeObject]] = self._client.v1.billing.meter_events.create_async
        try:
            await self._answer(create(params, {"idempotency_key": idempotency_key}))
        except errors.StripeRefused as error:
            if not _is_known_already(error.__cause__, event.identifier):
                raise

    async def meter_total(self, meter_ids: Sequence[str], customer_id: str, start: datetime, end: datetime) -> int:
        """Return the units that the meters have for a customer in [start, end), which must be whole minutes."""
        params = {
            "customer": customer_id,
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
        }
        total = 0
        for meter_id in meter_ids:
            list_page = functools.partial(self._client.v1.billing.meters.event_summaries.list_async, meter_id)
            total += sum(pages.units(summary) for summary in await self._all(list_page, params))
        return total

    # Events, and the time.

    async def thin_event(self, event_id: str) -> Data:
        """Fetch an event that was delivered without its data; raises NotAtStripe, for example after 30 days."""
        return await self._answer(self._client.v2.core.events.retrieve_async(event_id))

    async def server_time(self) -> datetime | None:
        """Return Stripe's present time, to the second; None if the answer does not have it. Changes nothing."""
        told: list[str] = []

        async def ask() -> stripe.StripeObject:
            answer = await self._client.v1.prices.list_async({"limit": 1})
            headers = answer.last_response.headers if answer.last_response is not None else {}
            told.extend(value for name, value in headers.items() if name.lower() == "date")
            return answer

        await self._answer(ask())
        return email.utils.parsedate_to_datetime(told[0]) if told else None

    async def _all(self, list_page: Callable[..., Awaitable[stripe.StripeObject]], params: Data) -> list[Data]:
        return await pages.fetch_all(lambda asked: self._answer(list_page(asked)), params)

    async def _get_all(self, path: str, params: Data) -> list[Data]:
        return await pages.fetch_all(lambda asked: self._get(path, asked), params)

    async def _get(self, path: str, params: Data) -> Data:
        """Return an object as Stripe wrote it.

        The SDK's own classes convert numbers while they read: a single wrong number would hide the whole page.
        """

        async def ask() -> object:
            return (await self._client.raw_request_async("get", path, **params)).data

        return await self._answer(ask())

    async def _answer(self, call: Awaitable[object], params: Data | None = None) -> Data:
        """Return the answer of a call; `params` are its parameters, which a refusal names."""
        try:
            async with asyncio.timeout(self._call_seconds_max):
                return _plain(await _translated(call, params or {}))
        except TimeoutError as error:
            raise errors.StripeUnavailable("Stripe took too long; send the same call again", 2.0) from error
        except (ArithmeticError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise NotReadable("Stripe's answer cannot be read", 60.0) from error


def _in_path(object_id: str) -> str:
    """Return an id for a URL's path: an id from an event may have any characters."""
    return urllib.parse.quote(object_id, safe="")


def _plain(answer: object) -> Data:
    """Return an answer as plain data."""
    if isinstance(answer, stripe.StripeObject):
        return answer.to_dict()
    if not isinstance(answer, Mapping):
        raise NotReadable(f"Stripe's answer is {parse.shown(answer)}, not an object", 60.0)
    return answer


async def _translated(call: Awaitable[object], params: Data) -> object:
    """Return the answer; turn the SDK's errors into our own."""
    try:
        return await call
    except stripe.InvalidRequestError as error:
        if error.http_status == HTTPStatus.NOT_FOUND:
            metadata = {"stripe_code": error.code or "", "stripe_param": ""}
            raise NotAtStripe("Stripe has no such object", metadata) from error
        raise refusals.translated(_told(error), params) from error
    except stripe.CardError as error:
        raise refusals.translated(_told(error), params) from error
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        # Without the traceback: the SDK's text contains a part of the key.
        _log.error("stripe_key_refused", code=error.code)
        raise errors.StripeUnavailable("Stripe does not accept this service's key", 60.0) from error
    except stripe.RateLimitError as error:
        what = "is busy with this object" if error.code == "lock_timeout" else "asks to wait"
        raise errors.StripeUnavailable(f"Stripe {what}; send the same call again", 2.0) from error
    except stripe.APIConnectionError as error:
        raise errors.StripeUnavailable("Stripe cannot be reached; send the same call again", 2.0) from error
    except stripe.IdempotencyError as error:
        # Another release sent the same intent with other parameters; the object may exist.
        raise KeySpent(
            "Stripe has this idempotency key with other parameters; send the same call again", 2.0
        ) from error
    except stripe.APIError as error:
        if _is_kept(error):
            raise KeySpent("Stripe failed; send the same call again", 2.0) from error
        raise errors.StripeUnavailable(f"{_what_it_was(error)}; send the same call again", 1.0) from error


def _but(params: Data, name: str) -> Any:  # noqa: ANN401 - the SDK's own types, one for each call
    """Return the body of a call, without the parameter that is in its path."""
    return {key: value for key, value in params.items() if key != name}


def _is_kept(error: stripe.APIError) -> bool:
    """Say whether Stripe will repeat this failure for the same key.

    Other 5xx come from proxies before Stripe, and the request's outcome is unknown: only the same key makes a repeat
    safe.
    """
    status = error.http_status or 0
    replayed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("idempotent-replayed")
    return status == HTTPStatus.INTERNAL_SERVER_ERROR or (
        status > HTTPStatus.INTERNAL_SERVER_ERROR and replayed == "true"
    )


def _what_it_was(error: stripe.APIError) -> str:
    """Return what came instead of an answer of the API; the outcome of a write is unknown."""
    status = error.http_status or 0
    if status == HTTPStatus.CONFLICT:
        return "Stripe is busy with this object"
    if not _is_json(error.http_body):
        what = "something that is not JSON" if error.http_body else "an empty body"
        return f"Stripe's address answered with {what} (HTTP status {status})"
    return f"Stripe failed (HTTP status {status})"


def _is_json(body: bytes | str | None) -> bool:
    try:
        json.loads(body or "")
    except (ValueError, RecursionError):
        return False
    return True


def _is_known_already(error: BaseException | None, identifier: str) -> bool:
    """Say whether Stripe refused a meter event because the meter has it: there is no error code, only the message."""
    text = error.user_message if isinstance(error, stripe.StripeError) else None
    return text is not None and "already exists" in text and identifier in text


def _told(error: stripe.InvalidRequestError | stripe.CardError) -> refusals.Told:
    return refusals.Told(
        code=error.code or "",
        decline_code=getattr(error.error, "decline_code", None) or "",
        param=str(getattr(error, "param", None) or ""),
        text=error.user_message or "",
        by_card=isinstance(error, stripe.CardError),
    )
