"""The one place where the gRPC server's objects are built."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from billing.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
    stripe_event_pb2,
    stripe_event_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from billing_svc import access, clock, draining, interceptors, processes
from billing_svc.admin.servicer import AdminServicer
from billing_svc.catalog import versions
from billing_svc.database import engine, transactions
from billing_svc.quota.servicer import QuotaServicer
from billing_svc.settings import Settings
from billing_svc.stripe import client
from billing_svc.stripe_events.servicer import StripeEventServicer
from billing_svc.subscriptions.checkout import Checkout
from billing_svc.subscriptions.servicer import SubscriptionServicer
from billing_svc.usage.servicer import UsageServicer

_log = structlog.get_logger("server")

# 5,000 events of a batch with their properties; the largest webhook body is a sixteenth of it.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# Calls under way at once in one process. Each batch queue has a tighter bound of its own; this one also covers what is
# not batched.
CALLS_AT_ONCE = 1_000
# What a stop waits for: longer than a call may take.
DRAIN_SECONDS = interceptors.SERVER_DEADLINE_SECONDS + 5.0

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (quota_pb2, "QuotaService"),
        (usage_pb2, "UsageService"),
        (subscription_pb2, "SubscriptionService"),
        (admin_pb2, "AdminService"),
        (stripe_event_pb2, "StripeEventService"),
    )
)


def layers(tokens: access.Tokens, answers: draining.Answers) -> Sequence[interceptors.Layer]:
    """Return what every call passes through, outermost first."""
    return (
        # Sees every outcome, so that each call has its log line.
        interceptors.identify,
        # Inside it, because the log names the status that was made here; around all else, because all else may raise.
        interceptors.map_errors,
        # Around all that takes time, so that whatever is under way when a stop begins is held until callers know.
        answers.layer,
        # Before anything is spent on the call.
        interceptors.limit_calls(CALLS_AT_ONCE),
        # Also bounds authentication.
        interceptors.limit_time,
        # Before the request is parsed: who may not call learns nothing of its content.
        interceptors.authenticate(tokens),
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers, and what it is made of."""

    server: grpc.aio.Server
    health: HealthServicer
    database: transactions.Transactions
    answers: draining.Answers
    port: int

    async def stop(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Turn unready, let the calls under way finish, then stop."""
        await self.health.enter_graceful_shutdown()
        await self.answers.stop(self.server, grace_seconds)
        await self.database.drain()


async def start(
    settings: Settings,
    database: transactions.Transactions,
    stripe: client.Stripe,
    now: clock.Clock,
    tokens: access.Tokens,
    *,
    shared_port: bool = False,
) -> Running:
    """Build the server and start to answer. Raises LookupError if no catalog was ever published.

    With `shared_port` several processes of one user may listen on the same port; the kernel spreads the connections.
    """
    catalogs = versions.CatalogCache()
    await database.read(catalogs.latest)
    answers = draining.Answers()
    server = grpc.aio.server(
        interceptors=[interceptors.Interceptors(layers(tokens, answers), tokens)],
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.so_reuseport", int(shared_port)),
        ],
    )
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(QuotaServicer(database, catalogs, now), server)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(database, catalogs, now), server)
    checkout = Checkout(database, catalogs, stripe, now)
    subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server(
        SubscriptionServicer(database, catalogs, checkout, now, settings), server
    )
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(database, catalogs, now), server)
    stripe_event_pb2_grpc.add_StripeEventServiceServicer_to_server(
        StripeEventServicer(database, now, livemode=settings.livemode), server
    )
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        reflection.enable_server_reflection((*SERVICES, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(settings.listen)
    await server.start()
    for service in ("", *SERVICES):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
    return Running(server, health, database, answers, port)


async def serve(settings: Settings, *, shared_port: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    stop = processes.stop_event()
    pool = engine.create_engine(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
    stripe = client.Stripe.from_settings(settings)
    try:
        running = await start(
            settings,
            transactions.Transactions(pool),
            stripe,
            clock.Clock(),
            access.read_tokens(settings),
            shared_port=shared_port,
        )
        processes.calm_garbage_collector()
        _log.info("serving", address=settings.listen, port=running.port)
        await stop.wait()
        _log.info("draining")
        await running.stop()
    finally:
        await stripe.close()
        await pool.dispose()
        _log.info("stopped")
