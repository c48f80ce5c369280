"""AdminService: gRPC in, one transaction, gRPC out. What is not here yet answers UNIMPLEMENTED."""

from billing.v1 import admin_pb2, admin_pb2_grpc
from billing_svc import clock, interceptors
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.overrides import conversions as overrides_conversions
from billing_svc.overrides import overriding
from billing_svc.quota import conversions as quota_conversions


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Changes what holds for one account, under audit."""

    def __init__(self, database: transactions.Transactions, catalogs: versions.CatalogCache, now: clock.Clock) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now

    async def SetOverride(
        self, request: admin_pb2.SetOverrideRequest, context: interceptors.Context
    ) -> admin_pb2.SetOverrideResponse:
        """Give an account an included quantity of its own on a meter."""
        setting = overrides_conversions.from_proto_set(request, interceptors.current_call().caller.name)
        now = self._clock.now()
        override = await self._database.run(lambda conn: overriding.set_override(conn, self._catalogs, setting, now))
        return admin_pb2.SetOverrideResponse(override=quota_conversions.to_proto_override(setting.meter, override))

    async def RemoveOverride(
        self, request: admin_pb2.RemoveOverrideRequest, context: interceptors.Context
    ) -> admin_pb2.RemoveOverrideResponse:
        """Let the plan decide again."""
        removal = overrides_conversions.from_proto_remove(request, interceptors.current_call().caller.name)
        now = self._clock.now()
        removed = await self._database.run(lambda conn: overriding.remove_override(conn, removal, now))
        return admin_pb2.RemoveOverrideResponse(removed=quota_conversions.to_proto_override(removal.meter, removed))
