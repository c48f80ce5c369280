"""Stripe's error answers, each named after its cause."""

from typing import Any


class ApiError(Exception):
    """An error, answered as `{"error": {type, code, message, param}}` with its status.

    `remembered`: the answer is stored with the idempotency key. Stripe does not store errors that occur before the
    request is executed.
    """

    status = 400
    type = "invalid_request_error"
    remembered = True

    undone = True
    """Whether the changes of the request are undone; a failed attempt to pay is kept."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        fields = {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
        return {"error": {name: value for name, value in fields.items() if value is not None}}


class InvalidParameter(ApiError):
    """The parameters are invalid in every state of the objects."""

    remembered = False


class Refused(ApiError):
    """The parameters are valid, but the objects' state does not allow the request."""


class NotFound(ApiError):
    """The path, or the object that it names, does not exist."""

    status = 404


class Unauthenticated(ApiError):
    """The API key is missing, or is not a test key."""

    status = 401
    remembered = False


class KeyReused(ApiError):
    """The idempotency key was used for another request."""

    type = "idempotency_error"
    remembered = False


class KeyInUse(KeyReused):
    """The first request with this idempotency key is not answered yet."""

    status = 409


class Broken(ApiError):
    """A defect of the sandbox."""

    status = 500
    type = "api_error"


class CardDeclined(ApiError):
    """The customer's card is declined."""

    status = 402
    type = "card_error"

    def __init__(self) -> None:
        super().__init__("Your card was declined.", code="card_declined")


class ActionRequired(CardDeclined):
    """The customer's bank wants an authentication, for which the customer must be present."""

    def __init__(self, subject: str) -> None:
        ApiError.__init__(
            self,
            "Your card was declined. This transaction requires authentication.",
            code=f"{subject}_payment_intent_requires_action",
        )


class DeclinedAttempt(CardDeclined):
    """The card is declined, and the attempt counts."""

    undone = False


class NoCard(Refused):
    """There is no card to charge."""

    def __init__(self) -> None:
        super().__init__(
            "This customer has no attached payment source or default payment method. Please consider adding a default"
            " payment method.",
            code="resource_missing",
        )


class TooMany(ApiError):
    """Too many requests; only a fault causes this answer."""

    status = 429
    remembered = False


class Locked(ApiError):
    """Another request is changing the same object."""

    status = 409
    remembered = False


class Unavailable(ApiError):
    """A proxy before Stripe could not reach Stripe."""

    status = 503
    type = "api_error"
    remembered = False
