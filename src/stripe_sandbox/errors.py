"""Stripe's error answers, named after the situation."""

from typing import Any


class ApiError(Exception):
    """Becomes `{"error": {type, code, message, param}}` with its status.

    `remembered` says whether an idempotency key keeps the answer: Stripe forgets what failed before execution began.
    """

    status = 400
    type = "invalid_request_error"
    remembered = True

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """Give the answer's JSON."""
        fields = {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
        return {"error": {name: value for name, value in fields.items() if value is not None}}


class InvalidParameter(ApiError):
    """The parameters are wrong whatever the state is."""

    remembered = False


class Refused(ApiError):
    """The parameters are fine, the state is not."""


class NotFound(ApiError):
    """The path names nothing that exists."""

    status = 404


class Unauthenticated(ApiError):
    """No key, or not a test key."""

    status = 401
    remembered = False


class KeyReused(ApiError):
    """One idempotency key, two requests."""

    type = "idempotency_error"
    remembered = False


class KeyInUse(KeyReused):
    """The first request with this idempotency key is not answered yet."""

    status = 409


class Broken(ApiError):
    """A fault of the sandbox itself."""

    status = 500
    type = "api_error"


class CardDeclined(ApiError):
    """The customer's bank does not pay."""

    status = 402
    type = "card_error"

    def __init__(self) -> None:
        super().__init__("Your card was declined.", code="card_declined")


class TooMany(ApiError):
    """More calls than Stripe allows, or so it says."""

    status = 429
    remembered = False


class Locked(ApiError):
    """Another request is at work on the same object."""

    status = 409
    remembered = False


class Unavailable(ApiError):
    """What stands before Stripe could not reach it."""

    status = 503
    type = "api_error"
    remembered = False
