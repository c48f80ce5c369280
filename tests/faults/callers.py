"""Callers with a log: for each request, they know that it was done or not done, or that its outcome is unknown.

At the end, requests with an unknown outcome are repeated under their ids; then the log says exactly what the database
must have.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import duration_pb2

from billing.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.billing_svc import processes, refusals

# Statuses of a call whose server, or Postgres, dies: it is unknown whether it was done.
UNKNOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
# Statuses of a call that was not done and may be repeated. Any other status is a defect.
NOT_DONE = {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
CALL_SECONDS_MAX = 10.0
# Between repeats of a call that is refused for now.
PAUSE_SECONDS = 0.05
# Longer than any run, so that no reservation expires during a run.
HOLD = duration_pb2.Duration(seconds=3600)
REPEATS_SHARE = 0.25
METER = "runs"

_CLOSED = decision_pb2.DECISION_REASON_RESERVATION_CLOSED


@dataclass(slots=True, eq=False)
class Deed:
    """A request under its own id, so that it can be repeated safely."""

    rpc: str
    request: Any
    # The first answer that said that it was done; for an event, the answer that a repeat must give.
    answer: Any = None
    is_unknown: bool = False
    # The request that settled or released a reservation.
    closer: "Deed | None" = None

    @property
    def units(self) -> int:
        return int(self.request.quantity)


class Server:
    """The stubs of a connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        usage, quota = usage_pb2_grpc.UsageServiceStub(channel), quota_pb2_grpc.QuotaServiceStub(channel)
        self.calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "RecordUsage": usage.RecordUsage,
            "BatchRecordUsage": usage.BatchRecordUsage,
            "CorrectUsage": usage.CorrectUsage,
            "CheckQuota": quota.CheckQuota,
            "ReleaseReservation": quota.ReleaseReservation,
        }


@dataclass(slots=True)
class Caller:
    """One of many callers, with a single request at a time; on the strict account, only requests that may be denied."""

    name: str
    rng: random.Random
    accounts: Sequence[str]
    strict: str = "strict"
    deadline: Callable[[random.Random], float] = lambda _rng: CALL_SECONDS_MAX
    deeds: list[Deed] = field(default_factory=list)
    held: list[Deed] = field(default_factory=list)
    correctable: list[Deed] = field(default_factory=list)
    calls: int = 0
    was_unknown: int = 0
    # No request of this caller is under way any more, so a denial is final.
    is_settling: bool = False

    async def work(self, servers: Sequence[Server], stop: asyncio.Event) -> None:
        """Make one request after another, each to any of the servers."""
        while not stop.is_set():
            server = self.rng.choice(servers)
            if self.deeds and self.rng.random() < REPEATS_SHARE:
                await self.perform(server, self.rng.choice(self.deeds))
            elif self.rng.random() < 0.1:
                await self.perform_together(server, [self.event() for _ in range(self.rng.randint(1, 6))])
            else:
                await self.perform(server, self.next())

    async def settle(self, server: Server) -> None:
        """Repeat requests with an unknown outcome until it is known."""
        self.is_settling, self.deadline = True, lambda _rng: CALL_SECONDS_MAX
        for deed in self.deeds:
            while deed.is_unknown:
                await self.perform(server, deed)

    def next(self) -> Deed:
        """Choose the next request."""
        draw = self.rng.random()
        if draw < 0.3 and self.held:
            return self.close(self.held.pop(self.rng.randrange(len(self.held))))
        if draw < 0.4 and self.correctable:
            return self.correction(self.correctable.pop(self.rng.randrange(len(self.correctable))))
        return self.hold() if draw < 0.6 else self.event()

    def event(self) -> Deed:
        request = usage_pb2.RecordUsageRequest(
            account_id=self.rng.choice(self.accounts),
            event_id=self._new_id("run"),
            meter=METER,
            quantity=self.rng.randint(1, 9),
        )
        if self.rng.random() < 0.2:
            request.account_id, request.quantity = self.strict, 1
            request.if_exceeded = usage_pb2.IF_EXCEEDED_REJECT
        return self._keep(Deed("RecordUsage", request))

    def hold(self) -> Deed:
        request = quota_pb2.CheckQuotaRequest(
            account_id=self.rng.choice((*self.accounts, self.strict)),
            meter=METER,
            quantity=self.rng.randint(1, 3),
            reserve=True,
            request_id=self._new_id("job"),
            reservation_ttl=HOLD,
        )
        return self._keep(Deed("CheckQuota", request))

    def close(self, hold: Deed) -> Deed:
        """Return a request that settles or releases a reservation."""
        reservation_id, account_id = hold.answer.reservation_id, hold.request.account_id
        if self.rng.random() < 0.4:
            released = quota_pb2.ReleaseReservationRequest(account_id=account_id, reservation_id=reservation_id)
            hold.closer = Deed("ReleaseReservation", released)
        else:
            settled = usage_pb2.RecordUsageRequest(
                account_id=account_id,
                event_id=self._new_id("done"),
                meter=METER,
                quantity=hold.units,
                reservation_id=reservation_id,
            )
            if account_id != self.strict:
                settled.quantity = self.rng.randint(1, 2 * hold.units)
            elif self.rng.random() < 0.5:
                # Its own reservation has enough units.
                settled.if_exceeded = usage_pb2.IF_EXCEEDED_REJECT
            hold.closer = Deed("RecordUsage", settled)
        return self._keep(hold.closer)

    def correction(self, event: Deed) -> Deed:
        request = usage_pb2.CorrectUsageRequest(
            account_id=event.request.account_id,
            event_id=event.request.event_id,
            correction_id=self._new_id("void"),
            quantity=self.rng.randint(1, event.units),
        )
        return self._keep(Deed("CorrectUsage", request))

    async def perform(self, server: Server, deed: Deed) -> None:
        """Make a request, and log its outcome."""
        answer = await self._call(server, deed.rpc, deed.request, [deed])
        if answer is not None:
            getattr(self, f"_take_{deed.rpc}")(deed, answer)

    async def perform_together(self, server: Server, deeds: Sequence[Deed]) -> None:
        """Record several events in a call."""
        request = usage_pb2.BatchRecordUsageRequest(events=[deed.request for deed in deeds])
        answer = await self._call(server, "BatchRecordUsage", request, deeds)
        if answer is not None:
            for deed, result in zip(deeds, answer.results, strict=True):
                assert result.HasField("answer"), result
                self._take_RecordUsage(deed, result.answer)

    async def _call(self, server: Server, rpc: str, request: object, deeds: Sequence[Deed]) -> Any:  # noqa: ANN401 - an answer
        self.calls += 1
        seconds = self.deadline(self.rng)
        try:
            # Waits until a server that is gone is back; failing immediately would make the callers spin.
            return await server.calls[rpc](
                request, metadata=processes.METADATA, timeout=seconds, wait_for_ready=seconds > 1
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in UNKNOWN | NOT_DONE:
                raise AssertionError(rpc, request) from error
            if error.code() in UNKNOWN:
                for deed in deeds:
                    self.was_unknown += deed.answer is None and not deed.is_unknown
                    deed.is_unknown = deed.answer is None
            wait_seconds = refusals.of(error).retry_after_seconds
            await asyncio.sleep(PAUSE_SECONDS if wait_seconds is None else min(wait_seconds, 2 * PAUSE_SECONDS))
            return None

    def _take_RecordUsage(self, deed: Deed, answer: usage_pb2.RecordUsageResponse) -> None:  # noqa: N802
        if answer.decision == decision_pb2.DECISION_DENIED:
            assert deed.answer is None, "what was acknowledged was denied"
            assert not deed.request.reservation_id, "what was held was denied"
            deed.is_unknown = deed.is_unknown and not self.is_settling
            return
        if deed.request.reservation_id:
            assert answer.reservation_outcome == usage_pb2.RESERVATION_OUTCOME_SETTLED, answer
        if self._is_first(deed, answer) and not deed.request.reservation_id:
            self.correctable.append(deed)

    def _take_CorrectUsage(self, deed: Deed, answer: usage_pb2.CorrectUsageResponse) -> None:  # noqa: N802
        self._is_first(deed, answer)

    def _take_CheckQuota(self, deed: Deed, answer: quota_pb2.CheckQuotaResponse) -> None:  # noqa: N802
        if answer.decision == decision_pb2.DECISION_DENIED:
            closed = answer.reason == _CLOSED
            assert closed == (deed.answer is not None), "what was held was denied"
            assert not closed or deed.closer is not None, "nobody closed it"
            deed.is_unknown = deed.is_unknown and not self.is_settling
            return
        assert answer.reservation_state == quota_pb2.RESERVATION_STATE_HELD, answer
        if deed.answer is None:
            self.held.append(deed)
            deed.answer, deed.is_unknown = answer, False
        assert answer.reservation_id == deed.answer.reservation_id

    def _take_ReleaseReservation(self, deed: Deed, answer: quota_pb2.ReleaseReservationResponse) -> None:  # noqa: N802
        assert answer.state == quota_pb2.RESERVATION_STATE_RELEASED, answer
        assert answer.released == (deed.answer is None) or deed.is_unknown, answer
        deed.answer, deed.is_unknown = answer, False

    def _is_first(self, deed: Deed, answer: Any) -> bool:  # noqa: ANN401 - of an event or a correction
        """Log an answer; every later answer must be equal, except for saying that it is a duplicate."""
        if deed.answer is not None:
            assert answer == deed.answer, "another answer than the first"
            return False
        assert deed.is_unknown or not answer.duplicate, "a new event was taken for a duplicate"
        deed.answer, deed.is_unknown = answer, False
        deed.answer.duplicate = True
        return True

    def _keep(self, deed: Deed) -> Deed:
        self.deeds.append(deed)
        return deed

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self.name}_{len(self.deeds)}"


def done(callers: Sequence[Caller], rpc: str) -> list[Deed]:
    """Return the requests that are known to be done."""
    return [deed for caller in callers for deed in caller.deeds if deed.rpc == rpc and deed.answer is not None]


def figures(callers: Sequence[Caller]) -> dict[str, int]:
    """Return counts of what was done, for the summary."""
    return {
        "calls": sum(caller.calls for caller in callers),
        "outcomes_unknown": sum(caller.was_unknown for caller in callers),
    }


def servers(channels: Sequence[grpc.aio.Channel]) -> list[Server]:
    return [Server(channel) for channel in channels]
