"""The load generator: a process that sends pre-encoded requests and times the answers; the same for every server.

It reads a job (JSON) from each line of stdin, and answers each with a line. `python -m benchmarks.driver` starts it.
"""

import array
import asyncio
import collections
import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import psycopg
import uvloop

from benchmarks import traffic

# Production callers send it too.
_METADATA = (("authorization", "Bearer dev-token"),)
_DEADLINE_SECONDS = 20.0
# How often the calls that are due are started.
_TICK_SECONDS = 0.002
# A caller's process has one channel; more channels spread the load over the processes of `--workers`.
_CHANNELS = 4
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
# Refused by the service, or by gRPC's core before the service gets the call.
_SHED = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED})
# Bytes to find in answers. Field 1 = 2 is CheckQuota's DENIED; field 1 = 1 is RecordUsage's duplicate, which must not
# occur.
_MARKS = {traffic.CHECK: b"\x08\x02", traffic.RECORD: b"\x08\x01"}


@dataclass(frozen=True, slots=True)
class Job:
    """A job: calls for `seconds` after a warm-up, or until `calls` were made; or round trips to Postgres.

    With `per_second`, calls start at that rate without waiting for answers, as long as fewer than `in_flight` are under
    way.
    """

    address: str = ""
    sent: traffic.Traffic | None = None
    database_url: str = ""
    in_flight: int = 128
    warm_up_seconds: float = 0.5
    seconds: float = 3.0
    calls: int = 0
    per_second: float = 0.0


@dataclass(slots=True)
class Done:
    """A job's result. Latencies are in microseconds, of successful and of refused calls after the warm-up."""

    calls_in_all: int = 0
    seconds: float = 0.0
    latencies_us: list[int] = field(default_factory=list)
    shed_us: list[int] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    marked: int = 0
    cpu_seconds: float = 0.0


class Load:
    """A running job."""

    def __init__(self, job: Job, requests: Iterator[bytes]) -> None:
        assert job.sent is not None
        self._job = job
        self._requests = requests
        self._mark = b"\xff" if job.sent.events else _MARKS[job.sent.rpc]
        self._latencies = array.array("d")
        self._shed = array.array("d")
        self._errors: collections.Counter[str] = collections.Counter()
        self._calls = 0
        self._marked = 0

    async def run(self) -> Done:
        """Keep `in_flight` calls under way, and return the result."""
        job = self._job
        assert job.sent is not None
        channels = [grpc.aio.insecure_channel(job.address, _OPTIONS) for _ in range(min(_CHANNELS, job.in_flight))]
        try:
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            began = time.perf_counter() + job.warm_up_seconds
            # With a number of calls, the job ends after the last of them.
            ends = began + job.seconds if not job.calls else float("inf")
            cpu = time.process_time()
            rpcs: list[Any] = [channel.unary_unary(job.sent.rpc, None, None) for channel in channels]
            if job.per_second:
                await self._at_a_rate(rpcs, began, ends)
            else:
                await asyncio.gather(*(self._caller(rpcs[n % len(rpcs)], began, ends) for n in range(job.in_flight)))
            cpu = time.process_time() - cpu
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))
        return Done(
            calls_in_all=self._calls,
            seconds=min(ends, time.perf_counter()) - began,
            latencies_us=[round(latency * 1e6) for latency in self._latencies],
            shed_us=[round(latency * 1e6) for latency in self._shed],
            errors=dict(self._errors),
            marked=self._marked,
            cpu_seconds=cpu,
        )

    async def _caller(self, rpc: Any, began: float, ends: float) -> None:  # noqa: ANN401 - grpc's callable
        calls_max = self._job.calls or sys.maxsize
        for request in self._requests:
            if time.perf_counter() >= ends or self._calls >= calls_max:
                return
            await self._call(rpc, request, began, ends)

    async def _at_a_rate(self, rpcs: Sequence[Any], began: float, ends: float) -> None:
        first, begun = began - self._job.warm_up_seconds, 0
        under_way: set[asyncio.Task[None]] = set()
        while (now := time.perf_counter()) < ends:
            due = int((now - first) * self._job.per_second)
            for n in range(begun, min(due, begun + self._job.in_flight - len(under_way))):
                task = asyncio.create_task(self._call(rpcs[n % len(rpcs)], next(self._requests), began, ends))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            begun = due
            await asyncio.sleep(_TICK_SECONDS)
        await asyncio.gather(*under_way)

    async def _call(self, rpc: Any, request: bytes, began: float, ends: float) -> None:  # noqa: ANN401 - grpc's callable
        self._calls += 1
        start = time.perf_counter()
        try:
            response = await rpc(request, timeout=_DEADLINE_SECONDS, metadata=_METADATA)
        except grpc.aio.AioRpcError as error:
            end = time.perf_counter()
            if error.code() in _SHED and began <= end < ends:
                self._shed.append(end - start)
            self._errors[f"{error.code().name}: {error.details()}"] += 1
            return
        end = time.perf_counter()
        if response.startswith(self._mark):
            self._marked += 1
        if began <= end < ends:
            self._latencies.append(end - start)


def percentile_ms(latencies_us: Sequence[int], percent: float) -> float:
    """Return a percentile."""
    every = sorted(latencies_us)
    return every[min(len(every) - 1, int(len(every) * percent / 100))] / 1000 if every else float("nan")


async def _round_trips(job: Job) -> Done:
    """Time round trips to Postgres, which every call of the service needs."""
    latencies = []
    async with await psycopg.AsyncConnection.connect(job.database_url, autocommit=True) as connection:
        began = time.perf_counter()
        while (start := time.perf_counter()) < began + job.seconds:
            await connection.execute("SELECT 1", prepare=True)
            latencies.append(round((time.perf_counter() - start) * 1e6))
    return Done(len(latencies), job.seconds, latencies)


def main() -> None:
    """Run the jobs from stdin, one after another."""
    gc.disable()
    requests: dict[traffic.Traffic, Iterator[bytes]] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            read = json.loads(line)
            sent = traffic.Traffic(**read.pop("sent")) if read["sent"] else read.pop("sent")
            job = Job(sent=sent, **read)
            if sent is None:
                done = runner.run(_round_trips(job))
            else:
                # Kept for the next rounds: encoding 100,000 accounts takes long.
                if sent not in requests:
                    requests[sent] = sent.requests()
                    next(requests[sent])
                done = runner.run(Load(job, requests[sent]).run())
            print(json.dumps(asdict(done)), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
