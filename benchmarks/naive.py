"""A service as it is often written by hand: gRPC servicers with an ORM transaction for each call. Only for comparison.

It has the same limit for all accounts and no periods, plans, authentication or logs; it still counts exactly. `python
-m benchmarks.naive ADDRESS DATABASE_URL` creates its own tables.
"""

import asyncio
import datetime as dt
import sys

import grpc
import sqlalchemy as sa
import uvloop
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from billing.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc

_INCLUDED = 1_000_000_000
# The same as the service's.
_POOL_SIZE = 10
_POOL_WAIT_SECONDS = 30


class _Base(DeclarativeBase):
    pass


class _Usage(_Base):
    __tablename__ = "naive_usage"
    account_id: Mapped[str] = mapped_column(primary_key=True)
    meter: Mapped[str] = mapped_column(primary_key=True)
    used: Mapped[int] = mapped_column(sa.BigInteger)


class _Event(_Base):
    __tablename__ = "naive_events"
    account_id: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    meter: Mapped[str]
    quantity: Mapped[int] = mapped_column(sa.BigInteger)
    recorded_at: Mapped[dt.datetime] = mapped_column(sa.DateTime(timezone=True))


class _Quota(quota_pb2_grpc.QuotaServiceServicer):
    def __init__(self, sessions: "async_sessionmaker[AsyncSession]") -> None:
        self._sessions = sessions

    async def CheckQuota(  # noqa: N802 - gRPC's name
        self, request: quota_pb2.CheckQuotaRequest, _context: object
    ) -> quota_pb2.CheckQuotaResponse:
        async with self._sessions() as session, session.begin():
            usage = await session.get(_Usage, (request.account_id, request.meter))
            used = usage.used if usage else 0
        allowed = used + request.quantity <= _INCLUDED
        decision = decision_pb2.DECISION_ALLOWED if allowed else decision_pb2.DECISION_DENIED
        return quota_pb2.CheckQuotaResponse(
            decision=decision, used=used, included=_INCLUDED, remaining=_INCLUDED - used, meter=request.meter
        )


class _UsageService(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, sessions: "async_sessionmaker[AsyncSession]") -> None:
        self._sessions = sessions

    async def RecordUsage(  # noqa: N802 - gRPC's name
        self, request: usage_pb2.RecordUsageRequest, _context: object
    ) -> usage_pb2.RecordUsageResponse:
        now = dt.datetime.now(dt.UTC)
        async with self._sessions() as session, session.begin():
            first = postgresql.insert(_Usage).values(account_id=request.account_id, meter=request.meter, used=0)
            await session.execute(first.on_conflict_do_nothing())
            usage = await session.get_one(_Usage, (request.account_id, request.meter), with_for_update=True)
            event = await session.get(_Event, (request.account_id, request.event_id))
            if event is None:
                usage.used += request.quantity
                session.add(
                    _Event(
                        account_id=request.account_id,
                        event_id=request.event_id,
                        meter=request.meter,
                        quantity=request.quantity,
                        recorded_at=now,
                    )
                )
            used = usage.used
        return usage_pb2.RecordUsageResponse(duplicate=event is not None, used=used, cost=request.quantity)


async def serve(address: str, url: str) -> None:
    """Serve until the process is killed."""
    engine = create_async_engine(url, pool_size=_POOL_SIZE, max_overflow=0, pool_timeout=_POOL_WAIT_SECONDS)
    async with engine.begin() as connection:
        await connection.run_sync(_Base.metadata.create_all)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    server = grpc.aio.server()
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(_Quota(sessions), server)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(_UsageService(sessions), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], sys.argv[2]))
