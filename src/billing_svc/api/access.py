"""Which caller may call which RPC. A call is refused if its RPC has no entry here or its caller lacks the group."""

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from billing_svc.platform import errors


class Group(enum.StrEnum):
    """A group of RPCs, which the callers' file gives to a caller."""

    CHECK = "check"
    RECORD = "record"
    SUBSCRIPTION = "subscription"
    ADMIN = "admin"
    WEBHOOK = "webhook"


class Open(enum.Enum):
    """Access to RPCs that belong to no group."""

    # Health checks: probes have no token, and learn only whether the service serves.
    ANYONE = enum.auto()
    # Reflection: the shape of the API, for every caller with a token.
    ANY_CALLER = enum.auto()


def _rpcs(service: str, group: Group, *names: str) -> dict[str, Group | Open]:
    return {f"/billing.v1.{service}/{name}": group for name in names}


# Every RPC that the server answers has an entry; a test compares this with the contract.
ENTRIES: Mapping[str, Group | Open] = {
    **_rpcs("QuotaService", Group.CHECK, "CheckQuota", "ReleaseReservation"),
    **_rpcs("UsageService", Group.RECORD, "RecordUsage", "BatchRecordUsage"),
    # A correction lowers what is charged, so the right to record usage is not enough.
    **_rpcs("UsageService", Group.ADMIN, "CorrectUsage"),
    **_rpcs("UsageService", Group.SUBSCRIPTION, "GetUsage"),
    **_rpcs(
        "SubscriptionService",
        Group.SUBSCRIPTION,
        "GetSubscription",
        "CreateCheckout",
        "CreatePortalSession",
        "SetPayAsYouGo",
        "ChangePlan",
        "CancelSubscription",
        "ResumeSubscription",
        "ListPlans",
        "PreviewCost",
        "ListInvoices",
        "ListAlerts",
        "AcknowledgeAlert",
    ),
    **_rpcs(
        "AdminService",
        Group.ADMIN,
        "ListAccounts",
        "GetAccount",
        "SetOverride",
        "RemoveOverride",
        "ListAllInvoices",
        "ListFindings",
        "ListAuditEntries",
        "ListStripeEvents",
        "ReplayStripeEvents",
    ),
    **_rpcs("StripeEventService", Group.WEBHOOK, "AcceptStripeEvent"),
    "/grpc.health.v1.Health/Check": Open.ANYONE,
    "/grpc.health.v1.Health/List": Open.ANYONE,
    "/grpc.health.v1.Health/Watch": Open.ANYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Open.ANY_CALLER,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller, its groups, and the prefix of its accounts (None: all accounts)."""

    name: str
    groups: frozenset[Group]
    account_prefix: str | None = None


ANONYMOUS = Caller("anonymous", frozenset())


class Tokens:
    """Finds callers by bearer tokens, stored as SHA-256 only, and by names in client certificates."""

    def __init__(
        self,
        callers: Iterable[tuple[Caller, Iterable[str]]],
        certificates: Iterable[tuple[Caller, Iterable[str]]] = (),
    ) -> None:
        """Store each caller with the hex SHA-256 of its tokens, and with its URIs and names in certificates."""
        self._callers = {bytes.fromhex(digest): caller for caller, digests in callers for digest in digests}
        self._by_certificate = {name: caller for caller, names in certificates for name in names}

    def take_over(self, other: "Tokens") -> None:
        """Replace all callers by those of `other`."""
        self._callers, self._by_certificate = other._callers, other._by_certificate  # noqa: SLF001 - of this class

    @property
    def know_certificates(self) -> bool:
        """Say whether any caller is known by its certificate."""
        return bool(self._by_certificate)

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller whose token an `authorization` value has. Raises Unauthenticated."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.Unauthenticated("send a token as `authorization: Bearer <token>`")
        digest = hashlib.sha256(token.strip().encode()).digest()
        # The time of a look-up by digest reveals nothing useful: a token cannot be chosen by the prefix of its digest.
        caller = self._callers.get(digest)
        if caller is None:
            raise errors.Unauthenticated("the token is not known")
        return caller

    def caller_of_certificate(self, names: Iterable[str]) -> Caller:
        """Return the caller that a verified client certificate names. Raises Unauthenticated for none or several."""
        found = {caller for name in names if (caller := self._by_certificate.get(name)) is not None}
        if len(found) != 1:
            raise errors.Unauthenticated(
                "send a token, or use a client certificate that names exactly one known caller"
            )
        return found.pop()


def authorize(method: str, authorization: str | None, tokens: Tokens, certificate: Iterable[str] = ()) -> Caller:
    """Return the caller of an RPC, or raise Unauthenticated or RpcNotAllowed.

    `certificate` has the names in a verified client certificate. If a token was sent, only the token counts.
    """
    entry = ENTRIES.get(method)
    if entry is Open.ANYONE:
        return ANONYMOUS
    if authorization is None and certificate:
        caller = tokens.caller_of_certificate(certificate)
    else:
        caller = tokens.caller(authorization)
    if entry is not Open.ANY_CALLER and entry not in caller.groups:
        group = entry.value if isinstance(entry, Group) else ""
        raise errors.RpcNotAllowed(
            f"caller {caller.name!r} lacks the group of this RPC", {"caller": caller.name, "group": group}
        )
    return caller
