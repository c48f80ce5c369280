"""Every service that the server answers, and its registration."""

from dataclasses import dataclass

from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

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
from billing_svc.api.servicers.admin import AdminServicer
from billing_svc.api.servicers.health import HealthServicer
from billing_svc.api.servicers.quota import QuotaServicer
from billing_svc.api.servicers.stripe_events import StripeEventServicer
from billing_svc.api.servicers.subscriptions import SubscriptionServicer
from billing_svc.api.servicers.usage import UsageServicer
from billing_svc.api.transport import serving

# The full names of our own services, for health checks and reflection.
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


@dataclass(frozen=True, slots=True)
class Servicers:
    """The servicer of each service."""

    quota: QuotaServicer
    usage: UsageServicer
    subscriptions: SubscriptionServicer
    admin: AdminServicer
    stripe_events: StripeEventServicer
    health: HealthServicer

    def register(self, server: serving.Server, *, reflected: bool) -> None:
        """Register all servicers at a server; with `reflected`, also gRPC's reflection."""
        server.add(quota_pb2_grpc.add_QuotaServiceServicer_to_server, self.quota)
        server.add(usage_pb2_grpc.add_UsageServiceServicer_to_server, self.usage)
        server.add(subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server, self.subscriptions)
        server.add(admin_pb2_grpc.add_AdminServiceServicer_to_server, self.admin)
        server.add(stripe_event_pb2_grpc.add_StripeEventServiceServicer_to_server, self.stripe_events)
        server.add(health_pb2_grpc.add_HealthServicer_to_server, self.health)
        if reflected:
            reflecting = reflection.aio.ReflectionServicer((*SERVICES, reflection.SERVICE_NAME))
            server.add(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflecting)
