"""Which accounts a limited caller may use; checked for every RPC, between parsing and the servicer.

Closed by default: a limited caller's request is refused unless it names its account in a field that is known here. Page
tokens give no rights: only the request's account is checked, and servicers read no other account.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from google.protobuf import descriptor, descriptor_pool

from billing.v1 import errors_pb2, usage_pb2
from billing_svc.api import access, fields
from billing_svc.platform import errors

# Separators before a sub-account's part of an id ("org_1:team_2"): prefix `org_1` opens these sub-accounts.
_BELOW = (":", "/")
# A prefix that ends in one of these opens every id that begins with it. A prefix that ends in a letter or a digit does
# not, because `org_1` must not open `org_10`.
_ENDS = (*_BELOW, ".", "-", "_", "|")
# RPCs that return no account's data unless their request names an account.
_ACCOUNTLESS = frozenset({"/billing.v1.SubscriptionService/ListPlans", "/billing.v1.SubscriptionService/PreviewCost"})
# PERMISSION_DENIED, for an event of a batch.
_PERMISSION_DENIED = 7

# The signature of a servicer's method, and the same with the caller as first argument.
Answer: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
Confined: TypeAlias = Callable[[access.Caller, Any, Any], Awaitable[Any]]


def check_prefix(prefix: str) -> None:
    """Raise ValueError if a prefix has no letter or digit: it is probably a mistake."""
    if not any(character.isalnum() for character in prefix):
        raise ValueError("an account_prefix needs a letter or a digit")


def opens(prefix: str, account_id: str) -> bool:
    """Say whether a prefix opens an account: the account with that id, and accounts below it."""
    return account_id == prefix or opens_all(prefix, account_id)


def opens_all(prefix: str, beginning: str) -> bool:
    """Say whether a prefix opens every account whose id begins with `beginning`."""
    ends = (prefix,) if prefix.endswith(_ENDS) else tuple(prefix + separator for separator in _BELOW)
    return beginning.startswith(ends)


def confine(method: str, answer: Answer) -> Confined:
    """Return the function that answers an RPC's parsed requests from limited callers.

    It raises AccountNotAllowed before the servicer runs, so the answer does not tell whether the account exists.
    """
    try:
        request_type = _request_type(method)
    except KeyError:  # not part of the contract, so it is unknown which accounts the RPC concerns
        return _refuse
    if request_type is None:
        return _pass_on(answer)
    if request_type.full_name == usage_pb2.BatchRecordUsageRequest.DESCRIPTOR.full_name:
        return _confine_batch(answer)
    is_within = _check_of(method, request_type)

    async def run(caller: access.Caller, request: Any, context: Any) -> Any:  # noqa: ANN401 - any message
        if not is_within(request, caller.account_prefix or ""):
            raise _not_allowed(caller)
        return await answer(request, context)

    return run


def _request_type(method: str) -> descriptor.Descriptor | None:
    """Return an RPC's request type; None for health and reflection, which concern no accounts. Raises KeyError."""
    service, _, name = method.removeprefix("/").partition("/")
    if not service.startswith("billing."):
        return None
    return descriptor_pool.Default().FindMethodByName(f"{service}.{name}").input_type


def _check_of(method: str, request_type: descriptor.Descriptor) -> Callable[[Any, str], bool]:
    is_accountless = method in _ACCOUNTLESS
    if "account_id" in request_type.fields_by_name:
        return lambda request, prefix: opens(prefix, request.account_id) or (is_accountless and not request.account_id)
    if "account_id_prefix" in request_type.fields_by_name:
        return lambda request, prefix: opens_all(prefix, request.account_id_prefix)
    return lambda _request, _prefix: is_accountless


def _pass_on(answer: Answer) -> Confined:
    async def run(_caller: access.Caller, request: Any, context: Any) -> Any:  # noqa: ANN401 - any message
        return await answer(request, context)

    return run


async def _refuse(caller: access.Caller, _request: Any, _context: Any) -> Any:  # noqa: ANN401 - any message
    raise _not_allowed(caller)


def _confine_batch(answer: Answer) -> Confined:
    """Answer each event of a foreign account with an error, as the contract says; the other events are recorded."""

    async def run(
        caller: access.Caller, request: usage_pb2.BatchRecordUsageRequest, context: object
    ) -> usage_pb2.BatchRecordUsageResponse:
        prefix = caller.account_prefix or ""
        within = [opens(prefix, event.account_id) for event in request.events]
        fit = [event for event, is_open in zip(request.events, within, strict=True) if is_open]
        answered = usage_pb2.BatchRecordUsageResponse()
        # The servicer also gets an empty batch, and answers it with its error.
        if fit or not within:
            answered = await answer(usage_pb2.BatchRecordUsageRequest(events=fit), context)
        results = iter(answered.results)
        return usage_pb2.BatchRecordUsageResponse(
            results=[
                next(results) if is_open else _refused_event(event, caller)
                for event, is_open in zip(request.events, within, strict=True)
            ],
            recorded=answered.recorded,
            duplicates=answered.duplicates,
            denied=answered.denied,
            failed=answered.failed + within.count(False),
        )

    return run


def _refused_event(event: usage_pb2.RecordUsageRequest, caller: access.Caller) -> usage_pb2.EventResult:
    error = _not_allowed(caller)
    return usage_pb2.EventResult(
        event_id=event.event_id[: fields.ID_LENGTH_MAX],
        error=usage_pb2.EventError(
            code=_PERMISSION_DENIED,
            reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}"),
            message=error.message,
            metadata=error.metadata,
        ),
    )


def _not_allowed(caller: access.Caller) -> errors.AccountNotAllowed:
    return errors.AccountNotAllowed(
        f"caller {caller.name!r} is limited to other accounts, and must name an account of its own",
        {"caller": caller.name},
    )
