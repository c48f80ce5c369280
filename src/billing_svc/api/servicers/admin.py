"""AdminService: each RPC is a single transaction."""

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import admin_pb2, admin_pb2_grpc
from billing_svc.api import account_overview, interceptors
from billing_svc.api.conversions import admin
from billing_svc.api.conversions import audit as audit_conversions
from billing_svc.api.conversions import findings as findings_conversions
from billing_svc.api.conversions import invoices as invoices_conversions
from billing_svc.api.conversions import overrides as overrides_conversions
from billing_svc.api.conversions import quota as quota_conversions
from billing_svc.api.conversions import stripe_events as events_conversions
from billing_svc.catalog import versions
from billing_svc.inbox import replay_events
from billing_svc.inbox import store as events_store
from billing_svc.metering.overrides import set_override
from billing_svc.platform import clock
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.findings import store as findings_store
from billing_svc.subscriptions.invoices import store as invoices_store


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Lists data for operators, and changes overrides, with audit rows."""

    def __init__(self, database: transactions.Transactions, catalogs: versions.CatalogCache, now: clock.Clock) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now

    async def ListAccounts(
        self, request: admin_pb2.ListAccountsRequest, context: interceptors.Context
    ) -> admin_pb2.ListAccountsResponse:
        """List accounts with plan, status and usage, by account id."""
        asked = admin.from_proto_list(request)
        now = self._clock.now()

        async def work(conn: AsyncConnection) -> tuple[list[account_overview.Summary], str]:
            after = asked.page.after[0] if asked.page.after else ""
            found = await accounts_store.list_accounts(conn, asked.prefix, after, asked.page.size + 1)
            shown, token = asked.page.cut(found, lambda account: (account.account_id,))
            return await account_overview.summaries(conn, self._catalogs, shown, now), token

        summaries, token = await self._database.read(work)
        return admin.to_proto_list(summaries, asked, token, now)

    async def GetAccount(
        self, request: admin_pb2.GetAccountRequest, context: interceptors.Context
    ) -> admin_pb2.GetAccountResponse:
        """Return an account's details."""
        account_id = admin.from_proto_get(request)
        now = self._clock.now()
        details = await self._database.read(
            lambda conn: account_overview.details(conn, self._catalogs, account_id, now)
        )
        return admin.to_proto_details(details, now)

    async def ListAllInvoices(
        self, request: admin_pb2.ListAllInvoicesRequest, context: interceptors.Context
    ) -> admin_pb2.ListAllInvoicesResponse:
        """List the invoices of all accounts, newest first."""
        choice, page = invoices_conversions.from_proto_list_all(request)
        rows = await self._database.read(
            lambda conn: invoices_store.list_invoices(conn, choice, page.after, page.size + 1)
        )
        invoices, token = invoices_conversions.to_proto_list(rows, page)
        return admin_pb2.ListAllInvoicesResponse(invoices=invoices, next_page_token=token)

    async def ListStripeEvents(
        self, request: admin_pb2.ListStripeEventsRequest, context: interceptors.Context
    ) -> admin_pb2.ListStripeEventsResponse:
        """List the inbox, newest first."""
        choice, page = events_conversions.from_proto_list(request)
        rows = await self._database.read(lambda conn: events_store.list_events(conn, choice, page.after, page.size + 1))
        return events_conversions.to_proto_list(rows, page)

    async def ReplayStripeEvents(
        self, request: admin_pb2.ReplayStripeEventsRequest, context: interceptors.Context
    ) -> admin_pb2.ReplayStripeEventsResponse:
        """Make the worker apply stored events again."""
        replay = events_conversions.from_proto_replay(request)
        if request.preview:
            found = await self._database.read(lambda conn: replay_events.preview(conn, replay))
            return events_conversions.to_proto_replayed(found)
        origin = audit_store.Origin(f"caller:{interceptors.call_of(context).caller.name}", replay.request_id)
        now = self._clock.now()
        replayed = await self._database.run(lambda conn: replay_events.run(conn, replay, origin, now))
        return events_conversions.to_proto_replayed(replayed)

    async def ListFindings(
        self, request: admin_pb2.ListFindingsRequest, context: interceptors.Context
    ) -> admin_pb2.ListFindingsResponse:
        """List the open findings, the oldest first."""
        choice, page = findings_conversions.from_proto_list(request)
        rows = await self._database.read(lambda conn: findings_store.list_page(conn, choice, page.after, page.size + 1))
        return findings_conversions.to_proto_list(rows, page)

    async def ListAuditEntries(
        self, request: admin_pb2.ListAuditEntriesRequest, context: interceptors.Context
    ) -> admin_pb2.ListAuditEntriesResponse:
        """List who changed what, newest first."""
        choice, page = audit_conversions.from_proto_list(request)
        rows = await self._database.read(lambda conn: audit_store.list_entries(conn, choice, page.after, page.size + 1))
        return audit_conversions.to_proto_list(rows, page)

    async def SetOverride(
        self, request: admin_pb2.SetOverrideRequest, context: interceptors.Context
    ) -> admin_pb2.SetOverrideResponse:
        """Set an account's own included quantity for a meter."""
        setting = overrides_conversions.from_proto_set(request, interceptors.call_of(context).caller.name)
        now = self._clock.now()
        override = await self._database.run(lambda conn: set_override.set_override(conn, self._catalogs, setting, now))
        return admin_pb2.SetOverrideResponse(override=quota_conversions.to_proto_override(setting.meter, override))

    async def RemoveOverride(
        self, request: admin_pb2.RemoveOverrideRequest, context: interceptors.Context
    ) -> admin_pb2.RemoveOverrideResponse:
        """Remove an override, so that the plan's included quantity applies again."""
        removal = overrides_conversions.from_proto_remove(request, interceptors.call_of(context).caller.name)
        now = self._clock.now()
        removed = await self._database.run(lambda conn: set_override.remove_override(conn, removal, now))
        return admin_pb2.RemoveOverrideResponse(removed=quota_conversions.to_proto_override(removal.meter, removed))
