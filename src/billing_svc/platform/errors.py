"""Every error that a caller can meet, named after the situation.

`code` is the gRPC status, `reason` the `ErrorReason` value without its prefix, and `metadata` holds the values that a
calling program can use. `api/statuses.py` is the only module that turns an error into a gRPC status. Messages are
written for the caller and never contain text of the database driver or of Stripe's SDK.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule; `field` is its path in the message."""

    field: str
    description: str


class BillingError(Exception):
    """An error that is reported to the caller; each situation has its subclass."""

    code: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata or {}


class InvalidRequest(BillingError):
    """The request breaks rules that do not depend on stored state; the error names every broken rule."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = tuple(violations)


class MalformedMessage(BillingError):
    """The bytes cannot be parsed as a message of the RPC's request type."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MALFORMED_MESSAGE"


class InvalidPageToken(BillingError):
    """A page token that this list did not give out."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_PAGE_TOKEN"


class Unauthenticated(BillingError):
    """The call has no token, or an unknown token."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class RpcNotAllowed(BillingError):
    """The caller is known, but does not have the RPC's group."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "RPC_NOT_ALLOWED"


class AccountNotAllowed(BillingError):
    """The caller is limited to other accounts. The error does not tell whether the account exists."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "ACCOUNT_NOT_ALLOWED"


class AccountNotFound(BillingError):
    """The account does not exist, and the RPC cannot answer with the terms of the default plan."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "ACCOUNT_NOT_FOUND"


class MeterNotFound(BillingError):
    """The catalog has no such meter."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "METER_NOT_FOUND"


class OperationNotFound(BillingError):
    """The catalog has no such operation."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "OPERATION_NOT_FOUND"


class PlanNotFound(BillingError):
    """The catalog has no such plan."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "PLAN_NOT_FOUND"


class PriceNotFound(BillingError):
    """The plan has no such price."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "PRICE_NOT_FOUND"


class PlanNotSold(BillingError):
    """The plan cannot be bought: it has no price."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PLAN_NOT_SOLD"


class AlreadySubscribed(BillingError):
    """A checkout was requested for an account whose plan subscription has not ended."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ALREADY_SUBSCRIBED"


class PlanNotApplied(BillingError):
    """The newest catalog's prices are not at Stripe yet: `billing-svc catalog apply` has not run."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PLAN_NOT_APPLIED"


class PriceArchived(BillingError):
    """The price belongs to an older catalog version, and is no longer sold."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PRICE_ARCHIVED"


class ItemsMissing(BillingError):
    """The subscription at Stripe lacks metered items of its plan, so that usage could not be charged."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ITEMS_MISSING"


class NotSubscribed(BillingError):
    """The account has no plan subscription that could be changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_SUBSCRIBED"


class NotCanceling(BillingError):
    """The subscription is not going to end, so there is nothing to resume."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_CANCELING"


class PlanUnchanged(BillingError):
    """The account has this plan, price and quantity already."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PLAN_UNCHANGED"


class NoStripeCustomer(BillingError):
    """The account has never been a customer at Stripe."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_STRIPE_CUSTOMER"


class PayAsYouGoNotOffered(BillingError):
    """The plan has no pay-as-you-go."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PAY_AS_YOU_GO_NOT_OFFERED"


class LevelBelowZero(BillingError):
    """The change would set a gauge's level below 0."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "LEVEL_BELOW_ZERO"


class EventNotFound(BillingError):
    """The account has no such usage event."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "EVENT_NOT_FOUND"


class GaugeNotCorrectable(BillingError):
    """Usage of a gauge cannot be corrected; the caller sets the gauge's level again instead."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "GAUGE_NOT_CORRECTABLE"


class CorrectionTooLarge(BillingError):
    """The correction takes back more units than the event still has."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CORRECTION_TOO_LARGE"


class ReservationNotFound(BillingError):
    """The account has no such reservation."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "RESERVATION_NOT_FOUND"


class RequestIdReused(BillingError):
    """The request id was used before with different content."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"


class AlertNotFound(BillingError):
    """The account has no such alert."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "ALERT_NOT_FOUND"


class OverrideNotFound(BillingError):
    """The account has no override on the meter."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "OVERRIDE_NOT_FOUND"


class StripeEventNotFound(BillingError):
    """The inbox has no such Stripe event."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "STRIPE_EVENT_NOT_FOUND"


class StripeEventBodyDeleted(BillingError):
    """The Stripe event was handled so long ago that its body was deleted; only its row is left."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "STRIPE_EVENT_BODY_DELETED"


class EventIdReused(BillingError):
    """The event id was used before with different content."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "EVENT_ID_REUSED"


class LostRace(BillingError):
    """Concurrent changes won at every attempt; the same call may be sent again."""

    code = grpc.StatusCode.ABORTED
    reason = "LOST_RACE"


class Unavailable(BillingError):
    """Postgres cannot be reached or is too slow; the same call may be sent again after `retry_after_seconds`."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class StripeUnavailable(Unavailable):
    """Stripe cannot be reached, is too slow or refuses calls for now; the same call may be sent again."""

    reason = "STRIPE_UNAVAILABLE"


class UsageNotReported(Unavailable):
    """The account's usage must reach Stripe first. It is being sent; the same call may be sent again."""

    reason = "USAGE_NOT_REPORTED"

    def __init__(self, account_id: str, retry_after_seconds: float = 2.0) -> None:
        super().__init__("the account's usage is being sent to Stripe; send the same call again", retry_after_seconds)
        self.metadata = {"account_id": account_id}


class NotAvailableYet(BillingError):
    """The contract defines the feature, but this version does not implement it."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_IMPLEMENTED"


class Overloaded(Unavailable):
    """The server is overloaded and did not begin the call; it may be sent again after `retry_after_seconds`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class DeadlineExceeded(BillingError):
    """The server's own deadline passed. The outcome is unknown: the caller repeats the call with the same id."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class StripeRefused(BillingError):
    """Stripe refused the request; the same request succeeds only after the cause is removed. Nothing changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "STRIPE_REFUSED"


class CustomerMissing(StripeRefused):
    """Stripe does not have the customer: it was deleted there, or the key belongs to another account."""

    def __init__(self, customer_id: str) -> None:
        message = f"Stripe has no customer {customer_id}"
        metadata = {"stripe_code": "resource_missing", "stripe_param": "customer", "stripe_object": customer_id}
        super().__init__(message, metadata)
        self.customer_id = customer_id


class StripeAccountMismatch(StripeRefused):
    """The service's key belongs to another Stripe account than the stored objects."""

    reason = "STRIPE_ACCOUNT_MISMATCH"


class PriceArchivedAtStripe(StripeRefused):
    """The price, or its product, is archived at Stripe, so that it cannot be sold."""

    reason = "PRICE_ARCHIVED"


class PaymentMethodRequired(StripeRefused):
    """A payment method must be on file first."""

    reason = "PAYMENT_METHOD_REQUIRED"


class PaymentFailed(StripeRefused):
    """The payment that the change needs was refused; nothing changed."""

    reason = "PAYMENT_FAILED"


class PaymentActionRequired(StripeRefused):
    """The customer's bank wants the customer to confirm the payment; nothing changed so far."""

    reason = "PAYMENT_ACTION_REQUIRED"


class StripeObjectUnreadable(BillingError, ValueError):
    """An object at Stripe has a field that cannot be read, or a price of no catalog; a person has to look at it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "STRIPE_OBJECT_UNREADABLE"


class ForeignSchedule(BillingError):
    """The subscription has a schedule at Stripe that this service did not make, and the request does not release it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FOREIGN_SCHEDULE"
