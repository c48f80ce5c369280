"""Builds all objects of the gRPC server, and runs it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from billing_svc.api import access, callers, interceptors, tls
from billing_svc.api.servicers import services
from billing_svc.api.servicers.admin import AdminServicer
from billing_svc.api.servicers.health import HealthServicer
from billing_svc.api.servicers.quota import QuotaServicer
from billing_svc.api.servicers.stripe_events import StripeEventServicer
from billing_svc.api.servicers.subscriptions import SubscriptionOperations, SubscriptionServicer
from billing_svc.api.servicers.usage import UsageServicer
from billing_svc.api.transport import choice, serving
from billing_svc.catalog import versions
from billing_svc.customers import portal
from billing_svc.customers.create_customer import Customers
from billing_svc.platform import clock, processes
from billing_svc.platform.database import engine, transactions
from billing_svc.platform.monitoring import http_port, metrics, readiness
from billing_svc.platform.settings import Settings
from billing_svc.stripe import catalog_sync, client
from billing_svc.stripe.intents import Requests
from billing_svc.subscriptions.changes.cancel_subscription import Cancellation
from billing_svc.subscriptions.changes.change_plan import PlanChanges
from billing_svc.subscriptions.changes.stripe_change import StripeChange
from billing_svc.subscriptions.checkouts.open_checkout import Checkout
from billing_svc.subscriptions.follow_ups.run_follow_ups import FollowUps
from billing_svc.subscriptions.pay_as_you_go.toggle import PayAsYouGoToggle
from billing_svc.subscriptions.previews.next_invoice import NextInvoices
from billing_svc.subscriptions.records.refresh_subscription import Refresher
from billing_svc.subscriptions.refusals.gone_customers import GoneCustomers
from billing_svc.subscriptions.refusals.handle_refusals import RefusalHandling
from billing_svc.usage_export.charge_unbilled import UnbilledUsage
from billing_svc.usage_export.export_now import ExportNow

_log = structlog.get_logger("server")

# Enough for a batch of 5,000 events with properties; the largest webhook body is a sixteenth of this.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# Calls under way at once in a process. The queue of each batcher has a lower bound; this bound also covers calls that
# are not batched.
CALLS_AT_ONCE = 1_000
# Calls that have reached gRPC's core but not Python. To refuse a call in Python costs more than half of answering it,
# so gRPC's core drops calls (CANCELLED) at almost no cost: some above this number, all above a quarter more. A burst of
# some hundred calls is still accepted.
CALLS_OUTSIDE_MAX = 512
# A connection that reaches its maximum age gets a GOAWAY, and is closed after this time: longer than a call may take.
CONNECTION_AGE_GRACE_SECONDS = interceptors.SERVER_DEADLINE_SECONDS + 5.0
# gRPC varies the maximum age by a tenth, so that connections which began together do not end together.
CONNECTION_AGE_VARIES = 0.1
# A client that vanished without closing its connection is noticed after the sum of both.
KEEPALIVE_SECONDS, KEEPALIVE_ANSWER_SECONDS = 60, 10
# Clients may send keepalive pings this often, also between calls. gRPC's default of 5 minutes would disconnect clients
# with common settings.
CLIENT_PING_SECONDS_MIN = 10


def routing(tokens: access.Tokens, counted: metrics.ServerMetrics | None = None) -> interceptors.Interceptors:
    """Return the interceptors that every call passes after its caller is authenticated, the outermost first."""
    # The limits come first, so that a refused call costs only the memory of its request. Open RPCs, which need no
    # token, have their own limit, so that strangers cannot use up the callers' limit. A stream that watches the
    # service's health lasts, so it has no deadline.
    limited = interceptors.limit(CALLS_AT_ONCE, interceptors.SERVER_DEADLINE_SECONDS)
    open_limited = interceptors.limit(interceptors.OPEN_CALLS_AT_ONCE, interceptors.SERVER_DEADLINE_SECONDS)
    streams_limited = interceptors.limit(interceptors.STREAMS_AT_ONCE)
    # Outermost, because every other layer may raise.
    outermost = interceptors.map_errors
    return interceptors.Interceptors(
        (outermost, limited),
        (outermost, open_limited),
        (outermost, streams_limited),
        tokens,
        (counted or metrics.ServerMetrics()).calls,
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A running server, and its parts."""

    server: serving.Server
    health: HealthServicer
    database: transactions.Transactions
    port: int
    # The longest time that a stop takes.
    drain_seconds: float

    async def set_serving(self, serving: bool) -> None:  # noqa: FBT001 - as `Readiness` calls it
        """Set the answer of health checks. After `stop` has begun, the answer stays NOT_SERVING."""
        self.health.set_serving(serving)

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Answer health checks with NOT_SERVING, answer calls until all connections are closed, then stop."""
        self.health.drain()
        await self.server.stop(self.drain_seconds if grace_seconds is None else grace_seconds)
        await self.database.drain()


def drain_seconds(settings: Settings) -> float:
    """Return the longest time of a stop: every connection reaches its maximum age, and its last call ends."""
    return settings.connection_age_seconds * (1 + CONNECTION_AGE_VARIES) + CONNECTION_AGE_GRACE_SECONDS


async def start(
    settings: Settings,
    database: transactions.Transactions,
    stripe: client.Stripe,
    now: clock.Clock,
    tokens: access.Tokens,
    *,
    counted: metrics.ServerMetrics | None = None,
    shared_port: bool = False,
) -> Running:
    """Build and start the server. Raises LookupError if no catalog was ever published.

    With `shared_port` several processes of one user may listen on the same port; the kernel spreads the connections.
    """
    catalogs = versions.CatalogCache()
    await database.read(catalogs.latest)
    counted = counted or metrics.ServerMetrics()
    quota = QuotaServicer(database, catalogs, now, counted)
    usage = UsageServicer(database, catalogs, now, counted)
    operations = _operations(database, catalogs, stripe, now)
    subscriptions = SubscriptionServicer(database, catalogs, operations, now, settings)
    admin = AdminServicer(database, catalogs, now)
    events = StripeEventServicer(database, now, livemode=settings.livemode)
    health = HealthServicer(services.SERVICES)
    transport = choice.server_class(settings.transport)
    rpc = transport(routing(tokens, counted), _options(settings, shared_port=shared_port))
    servicers = services.Servicers(quota, usage, subscriptions, admin, events, health)
    servicers.register(rpc, reflected=settings.reflection)
    credentials = tls.Certificates(settings).credentials() if settings.is_encrypted else None
    port = rpc.listen(settings.listen, credentials)
    await rpc.start()
    running = Running(rpc, health, database, port, drain_seconds(settings))
    await running.set_serving(True)
    return running


def _operations(
    database: transactions.Transactions, catalogs: versions.CatalogCache, stripe: client.Stripe, now: clock.Clock
) -> SubscriptionOperations:
    customers = Customers(database, stripe, now)
    refresher = Refresher(database, catalogs, stripe, now)
    flush = ExportNow(database, catalogs, stripe, now)
    carrier = StripeChange(database, stripe, refresher, flush, now)
    unbilled_usage = UnbilledUsage(database, stripe, now)
    follow_ups = FollowUps(database, catalogs, Requests(database, stripe, now), refresher, flush, unbilled_usage, now)
    return SubscriptionOperations(
        checkout=Checkout(database, catalogs, stripe, customers, refresher, now),
        portal=portal.Portal(database, stripe, customers, now, catalog_sync.portal_configuration),
        plan_changes=PlanChanges(carrier, catalogs),
        cancellation=Cancellation(carrier),
        pay_as_you_go=PayAsYouGoToggle(carrier, catalogs, customers, follow_ups),
        next_invoices=NextInvoices(database, stripe),
        refusals=RefusalHandling(database, GoneCustomers(database, stripe, refresher, now)),
    )


def _options(settings: Settings, *, shared_port: bool) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.server.max_pending_requests", CALLS_OUTSIDE_MAX),
        ("grpc.server.max_pending_requests_hard_limit", CALLS_OUTSIDE_MAX * 5 // 4),
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_connection_age_ms", settings.connection_age_seconds * 1_000),
        ("grpc.max_connection_age_grace_ms", round(CONNECTION_AGE_GRACE_SECONDS * 1_000)),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1_000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_SECONDS * 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_SECONDS_MIN * 1_000),
    )


async def serve(settings: Settings, *, shared_port: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    stop = processes.stop_event()
    url = settings.database_url.get_secret_value()
    pool = engine.create_engine(url, pool_size=settings.database_pool_size)
    probed = engine.create_engine(url, pool_size=1)
    counted = metrics.ServerMetrics()
    stripe = client.Stripe.from_settings(settings, metrics.StripeRequests(counted.registry))
    metrics.watch_pool(counted.registry, lambda: processes.connections_in_use(pool), settings.database_pool_size)
    try:
        followed = callers.Followed(settings)
        counted.watch_callers(lambda: followed.is_stale)
        running = await start(
            settings,
            transactions.Transactions(pool, keep=True),
            stripe,
            clock.from_settings(settings),
            followed.tokens,
            counted=counted,
            shared_port=shared_port,
        )
        ready = readiness.Readiness(
            transactions.Transactions(probed, readiness.ANSWER_SECONDS_MAX), running.set_serving
        )
        metrics.watch_readiness(counted.registry, ready.is_ready)
        operators = http_port.app_of(counted.registry, ready.is_ready)
        async with http_port.answering(settings.monitoring_listen, operators), asyncio.TaskGroup() as following:
            following.create_task(followed.follow(stop))
            following.create_task(ready.follow(stop))
            processes.calm_garbage_collector()
            _log.info("serving", address=settings.listen, port=running.port, encrypted=settings.is_encrypted)
            await stop.wait()
            _log.info("draining")
            ready.drain()
            await running.stop()
    finally:
        await stripe.close()
        await pool.dispose()
        await probed.dispose()
        _log.info("stopped")
