"""Who may call what. Closed by default: an RPC without an entry here, and a caller without its group, is refused."""

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from billing_svc import errors, settings


class Group(enum.StrEnum):
    """What a caller can be given."""

    CHECK = "check"
    RECORD = "record"
    SUBSCRIPTION = "subscription"
    ADMIN = "admin"
    WEBHOOK = "webhook"


class Open(enum.Enum):
    """RPCs that belong to no group."""

    # Probes carry no token, and learn nothing but whether the service serves.
    ANYONE = enum.auto()
    # The shape of the API, to any caller with a token.
    ANY_CALLER = enum.auto()


def _rpcs(service: str, group: Group, *names: str) -> dict[str, Group | Open]:
    return {f"/billing.v1.{service}/{name}": group for name in names}


# Every RPC that the server answers has an entry; a test compares this with the contract.
ENTRIES: Mapping[str, Group | Open] = {
    **_rpcs("QuotaService", Group.CHECK, "CheckQuota", "ReleaseReservation"),
    **_rpcs("UsageService", Group.RECORD, "RecordUsage", "BatchRecordUsage"),
    # It takes money back, so it is not for whoever may record.
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
    """An authenticated caller and the groups that it was given."""

    name: str
    groups: frozenset[Group]


ANONYMOUS = Caller("anonymous", frozenset())


class Tokens:
    """The callers' bearer tokens, kept as SHA-256 only."""

    def __init__(self, callers: Iterable[tuple[Caller, Iterable[str]]]) -> None:
        """Take each caller with the hex SHA-256 of its tokens (several, for rotation)."""
        self._callers = {bytes.fromhex(digest): caller for caller, digests in callers for digest in digests}

    def caller(self, authorization: str | None) -> Caller:
        """Return whose token an `authorization` value carries. Raises Unauthenticated."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.Unauthenticated("send a token as `authorization: Bearer <token>`")
        digest = hashlib.sha256(token.strip().encode()).digest()
        # A look-up by digest leaks no timing of use: nobody can choose a token by the prefix of its hash.
        caller = self._callers.get(digest)
        if caller is None:
            raise errors.Unauthenticated("the token is not known")
        return caller


class _CallerEntry(pydantic.BaseModel):
    """A caller in the callers' file."""

    model_config = pydantic.ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, pydantic.Field(min_length=1, max_length=64)]
    groups: frozenset[Group]
    token_sha256: Annotated[
        tuple[Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")], ...], pydantic.Field(min_length=1)
    ]


class _CallersFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", hide_input_in_errors=True)

    callers: tuple[_CallerEntry, ...]


def read_tokens(options: settings.Settings) -> Tokens:
    """Return the callers that the settings name; in `dev`, one with the well-known token. Raises SettingsError."""
    callers: list[tuple[Caller, tuple[str, ...]]] = []
    if options.callers_file is not None:
        try:
            entries = _CallersFile.model_validate(YAML(typ="safe").load(options.callers_file.read_text()))
        except (OSError, YAMLError, UnicodeDecodeError):
            raise settings.SettingsError(
                f"BILLING_CALLERS_FILE: {options.callers_file} cannot be read as YAML"
            ) from None
        except pydantic.ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise settings.SettingsError(f"BILLING_CALLERS_FILE: {options.callers_file}: {problems}") from None
        callers = [(Caller(entry.name, entry.groups), entry.token_sha256) for entry in entries.callers]
    dev_digest = hashlib.sha256(settings.DEV_TOKEN.encode()).hexdigest()
    if options.dev:
        callers.append((Caller("dev", frozenset(Group)), (dev_digest,)))
    elif any(dev_digest in digests for _, digests in callers):
        raise settings.SettingsError("BILLING_CALLERS_FILE: the token of `dev` is known to everyone; choose another")
    if not callers:
        raise settings.SettingsError("BILLING_CALLERS_FILE is not set: nobody could call")
    return Tokens(callers)


def authorize(method: str, authorization: str | None, tokens: Tokens) -> Caller:
    """Return the caller of an RPC, or raise Unauthenticated or RpcNotAllowed."""
    entry = ENTRIES.get(method)
    if entry is Open.ANYONE:
        return ANONYMOUS
    caller = tokens.caller(authorization)
    if entry is not Open.ANY_CALLER and entry not in caller.groups:
        raise errors.RpcNotAllowed(f"caller {caller.name!r} was not given this RPC")
    return caller
