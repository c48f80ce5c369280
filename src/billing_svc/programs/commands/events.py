"""`events list` and `events replay`: the inbox of Stripe's events, for operators."""

# ruff: noqa: PLC0415 - imported inside, so that --help and wrong options are answered at once

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from billing_svc.programs.commands import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from billing_svc.inbox.replay_events import Replayed
    from billing_svc.inbox.store import EventFilter, InboxEvent
    from billing_svc.platform.clock import Clock
    from billing_svc.platform.database.transactions import Transactions

app = typer.Typer(help="The inbox of Stripe's events.", no_args_is_help=True)

_EVENTS_MAX = 500


class _State(enum.StrEnum):
    """The state of an event."""

    WAITING = "waiting"
    APPLIED = "applied"
    IGNORED = "ignored"
    FAILED = "failed"


_OfState = Annotated[_State | None, typer.Option("--state", help="Only events in this state.")]
_OfType = Annotated[str, typer.Option("--type", help="Only events of this type, such as invoice.paid.")]
_Since = Annotated[str, typer.Option(metavar="INSTANT", help="Received at this instant or later.")]
_Before = Annotated[str, typer.Option(metavar="INSTANT", help="Received before this instant.")]


@app.command("list")
def list_events(  # noqa: PLR0913 - each is an option
    state: _OfState = None,
    type_: _OfType = "",
    object_id: Annotated[str, typer.Option("--object", help="Only events of this object, such as sub_1.")] = "",
    account: Annotated[str, typer.Option(help="Only events that were applied to this account.")] = "",
    since: _Since = "",
    before: _Before = "",
    most: Annotated[int, typer.Option(min=1, max=_EVENTS_MAX, help="How many events.")] = 50,
    *,
    as_json: common.AsJson = False,
) -> None:
    """Show the inbox, newest first."""
    from billing_svc.api.conversions import stripe_events
    from billing_svc.inbox import store

    choice = _choice(state, type_, since, before, object_id, account)

    async def work(database: "Transactions", _clock: "Clock") -> "Sequence[InboxEvent]":
        return await database.read(lambda conn: store.list_events(conn, choice, None, most))

    rows = common.on_database(work)
    if as_json:
        common.show(stripe_events.to_proto_events(rows))
        return
    common.table(
        "Stripe's events",
        ("received (UTC)", "event", "type", "object", "account", "state", "attempts", "why"),
        [
            (
                row.received_at.strftime("%Y-%m-%d %H:%M:%S"),
                row.event_id,
                row.type,
                row.object_id,
                row.account_id,
                row.state,
                str(row.attempts),
                row.note or "",
            )
            for row in rows
        ],
    )


@app.command("replay")
def replay_events(
    event: Annotated[list[str] | None, typer.Argument(metavar="[EVENT]...", help="Events by id.")] = None,
    state: _OfState = None,
    type_: _OfType = "",
    since: _Since = "",
    before: _Before = "",
    *,
    preview: Annotated[bool, typer.Option("--preview", help="Change nothing; count the events.")] = False,
    as_json: common.AsJson = False,
) -> None:
    """Make the worker apply events again: the named events, or all that match the options."""
    import uuid

    from billing_svc.api.conversions import stripe_events
    from billing_svc.inbox import replay_events as replays
    from billing_svc.inbox import store
    from billing_svc.platform.audit import store as audit_store

    choice = _choice(state, type_, since, before)
    if bool(event) == (choice != store.EventFilter()):
        common.refuse("name events, or give at least one of --state, --type, --since and --before")
    request = replays.Replay(tuple(dict.fromkeys(event or ())), choice, uuid.uuid4().hex)
    origin = audit_store.Origin(common.actor(), request.request_id)

    async def work(database: "Transactions", clock: "Clock") -> "Replayed":
        if preview:
            return await database.read(lambda conn: replays.preview(conn, request))
        now = clock.now()
        return await database.run(lambda conn: replays.run(conn, request, origin, now))

    replayed = common.on_database(work)
    if as_json:
        common.show(stripe_events.to_proto_replayed(replayed))
        return
    outcome = "would wait" if preview else "wait"
    typer.echo(f"{replayed.count:,} events {outcome} to be applied again{'; there are more' if replayed.more else ''}")


def _choice(
    state: _State | None, type_: str, since: str, before: str, object_id: str = "", account: str = ""
) -> "EventFilter":
    from billing_svc.inbox import store

    return store.EventFilter(
        "" if state is None else state.value,
        type_,
        object_id,
        account,
        common.parsed_instant(since) if since else None,
        common.parsed_instant(before) if before else None,
    )
