"""The measurements: each group makes some rows of the table."""

import contextlib
import io
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cached_property

import psycopg

from benchmarks import driver, programs, results, stand, traffic
from benchmarks.results import Row
from benchmarks.rounds import Meter, Rounds, Subject

_BATCH_EVENTS = 1_000
# How much longer a lone call may take than an echo and a round trip to Postgres together.
_LONE_MS_MAX = 0.5
_RESIDENT_MB_MAX = 150
# Memory counts as flat below this: allocators and caches grow a little after the first calls.
_GROWTH_MB_MAX = 10
_MEMORY_STEPS = 5
_H2LOAD_CALLS = 8_000
_OVERLOAD_SECONDS = 4.0
# More than the server's queues hold.
_OVERLOAD_IN_FLIGHT = 2_000
# An accepted call waits behind at most two full queues.
_OVERLOAD_MS_MAX = 1_000
# A call without an answer must have been refused, by the service or by gRPC's core.
_SHED = ("RESOURCE_EXHAUSTED", "CANCELLED")
_CHECK_BAR, _CHECK_AIM = 0.60, 0.85
_RECORD_BAR, _RECORD_AIM = 0.55, 0.75
# For a hot account, many accounts and a mix: no throughput may be below the bar by more than a fifth.
_SPREAD = 0.8


class Plan:
    """The servers of a run; each is started when a group first needs it."""

    def __init__(self, stood: stand.Stand, meter: Meter, *, stored: int, calls: int) -> None:
        self.stand = stood
        self.meter = meter
        self.stored = stored
        self.calls = calls
        self._running = contextlib.ExitStack()

    def close(self) -> None:
        """Stop the servers."""
        self._running.close()

    def start(self, server: programs.Server) -> programs.Server:
        """Register a server to be stopped at the end of the run."""
        return self._running.enter_context(server)

    @cached_property
    def nyqst_database(self) -> str:
        """A database of accounts on `pro`: 200 runs included, charged beyond. No call is denied."""
        self.stand.create_catalog("nyqst", "pro", "runs")
        self.stand.create("nyqst_empty", "nyqst")
        return "nyqst"

    @cached_property
    def echo(self) -> programs.Server:
        """The bare echo."""
        return self.start(self.stand.echo())

    @cached_property
    def nyqst(self) -> programs.Server:
        """A process of the service."""
        return self.start(self.stand.serve("nyqst", self.nyqst_database))

    @cached_property
    def nyqst_aio(self) -> programs.Server:
        """The same on gRPC's public interface."""
        return self.start(self.stand.serve("nyqst_aio", self.nyqst_database, "aio"))

    @cached_property
    def kalshibook(self) -> programs.Server:
        """A process of the service in which every check counts against a rate limit of 120 a minute."""
        self.stand.create_catalog("kalshibook", "project", "credits")
        return self.start(self.stand.serve("kalshibook", "kalshibook"))


def check(plan: Plan) -> list[Row]:
    """CheckQuota, compared with the echo."""
    echo, *others = plan.meter.compare(
        [
            Subject("echo", plan.echo, traffic.Traffic(traffic.CHECK)),
            *_spread("CheckQuota", plan.nyqst, traffic.CHECK, ("known", "hot", "mix")),
        ]
    )
    return [results.row(echo), *_against(echo, others, _CHECK_BAR, _CHECK_AIM)]


def record(plan: Plan) -> list[Row]:
    """RecordUsage, committed, compared with the echo."""
    echo, *others = plan.meter.compare(
        [
            Subject("echo of RecordUsage", plan.echo, traffic.Traffic(traffic.RECORD)),
            *_spread("RecordUsage", plan.nyqst, traffic.RECORD, ("known", "new", "hot", "mix")),
        ]
    )
    return [results.row(echo), *_against(echo, others, _RECORD_BAR, _RECORD_AIM)]


def transports(plan: Plan) -> list[Row]:
    """Both calls on each transport, by turns, against the same echo."""
    rows = []
    for name, rpc in (("CheckQuota", traffic.CHECK), ("RecordUsage", traffic.RECORD)):
        sent = traffic.Traffic(rpc)
        echo, *others = plan.meter.compare(
            [
                Subject(f"echo of {name}, beside both", plan.echo, sent),
                Subject(f"{name}, on fast", plan.nyqst, sent),
                Subject(f"{name}, on aio", plan.nyqst_aio, sent),
            ]
        )
        rows += [results.row(echo), *(results.row(one, echo) for one in others)]
    return rows


def rated(plan: Plan) -> list[Row]:
    """CheckQuota with a rate limit, where each check is a small write."""
    echo, checks = plan.meter.compare(
        [
            Subject("echo", plan.echo, traffic.Traffic(traffic.CHECK)),
            Subject("CheckQuota, rate limited", plan.kalshibook, traffic.Traffic(traffic.CHECK, meter="credits")),
        ]
    )
    return [results.row(checks, echo, bar=0.45)]


def reserve(plan: Plan) -> list[Row]:
    """CheckQuota that reserves its units."""
    sent = traffic.Traffic(traffic.CHECK, reserve=True)
    subject = Subject("CheckQuota, reserving", plan.nyqst, sent)
    tried = plan.meter.drivers.run(driver.Job(plan.nyqst.address, sent, in_flight=1, warm_up_seconds=0, calls=1))
    if tried.errors:
        return [Row(subject.name, note=f"left out: {next(iter(tried.errors))}")]
    echo, checks = plan.meter.compare([Subject("echo", plan.echo, traffic.Traffic(traffic.CHECK)), subject])
    return [results.row(checks, echo)]


def batch(plan: Plan) -> list[Row]:
    """BatchRecordUsage, and COPY of the same rows."""
    name = f"BatchRecordUsage, {_BATCH_EVENTS:,} events"
    sent = traffic.Traffic(traffic.BATCH, events=_BATCH_EVENTS)
    alone, four = plan.meter.compare(
        [Subject(name, plan.nyqst, sent, in_flight=1), Subject(f"{name}, 4 at once", plan.nyqst, sent, in_flight=4)]
    )
    copied = _copy_rates(plan)
    rows = []
    for measured in (alone, four):
        found = results.row(measured, units_per_call=_BATCH_EVENTS)
        ratios = [each.per_second * _BATCH_EVENTS / rate for each, rate in zip(measured.rounds, copied, strict=True)]
        found.against, found.ratio, found.ratios = (
            "COPY",
            statistics.median(ratios),
            [round(ratio, 4) for ratio in ratios],
        )
        rows.append(found)
    rows[0].bar, rows[0].aim = 0.15, 0.25
    rows[0].passed = (rows[0].ratio or 0) >= rows[0].bar and not rows[0].errors
    note = f"{_BATCH_EVENTS:,} rows a transaction, keys and indexes as usage_events"
    return [Row("COPY", per_second=statistics.median(copied), note=note), *rows]


def _copy_rates(plan: Plan) -> list[float]:
    """Return COPY's rows per second for each round: the newest rows, into a table of the same structure."""
    rates = []
    with psycopg.connect(plan.stand.conninfo(plan.nyqst_database), autocommit=True) as connection:
        connection.execute("CREATE TABLE copied (LIKE usage_events INCLUDING ALL)")
        newest = "COPY (SELECT * FROM usage_events ORDER BY recorded_at DESC LIMIT %s) TO STDOUT"
        with connection.cursor() as cursor, cursor.copy(newest, [20 * _BATCH_EVENTS]) as copying:
            lines = io.BytesIO(b"".join(copying)).readlines()
        chunks = [b"".join(lines[n : n + _BATCH_EVENTS]) for n in range(0, len(lines), _BATCH_EVENTS)]
        for _ in range(plan.meter.rounds):
            connection.execute("TRUNCATE copied")
            began = time.perf_counter()
            for chunk in chunks:
                with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as writing:
                    writing.write(chunk)
            rates.append(len(lines) / (time.perf_counter() - began))
        connection.execute("DROP TABLE copied")
    return rates


def lone(plan: Plan) -> list[Row]:
    """CheckQuota, each call after the previous, compared with an echo and a round trip to Postgres."""
    sent = traffic.Traffic(traffic.CHECK)
    subjects = [
        Subject("lone echo", plan.echo, sent, in_flight=1),
        Subject("lone CheckQuota", plan.nyqst, sent, in_flight=1),
    ]
    echo, checks = plan.meter.compare(subjects, seconds=1.0)
    url = plan.stand.conninfo(plan.nyqst_database)
    trip = plan.meter.drivers.run(driver.Job(database_url=url, in_flight=1, seconds=1.0))
    trip_ms = statistics.median(trip.latencies_us) / 1000
    bound = echo.percentile_ms(50) + trip_ms + _LONE_MS_MAX
    found = results.row(checks)
    found.passed = checks.percentile_ms(50) <= bound
    found.note = f"bound {bound:.2f} ms: echo + Postgres {trip_ms:.2f} + {_LONE_MS_MAX}"
    return [results.row(echo), found]


def history(plan: Plan) -> list[Row]:
    """Run the groups `check` and `record` with and without stored events."""
    plan.stand.create("nyqst_stored", "nyqst_empty" if plan.nyqst_database else "")
    plan.stand.store_events("nyqst_stored", plan.stored)
    # Postgres has no page of a newly copied database in memory.
    plan.stand.warm("nyqst_empty")
    plan.stand.warm("nyqst_stored")
    with plan.stand.serve("empty", "nyqst_empty") as empty, plan.stand.serve("stored", "nyqst_stored") as stored:
        rows = []
        for name, rpc in (("CheckQuota", traffic.CHECK), ("RecordUsage", traffic.RECORD)):
            sent = traffic.Traffic(rpc)
            without, beside = plan.meter.compare(
                [
                    Subject(f"{name}, none stored", empty, sent),
                    Subject(f"{name}, {plan.stored:,} stored", stored, sent),
                ]
            )
            rows.append(results.row(beside, without, bar=0.90))
    return rows


def overload(plan: Plan) -> list[Row]:
    """Twice the load that the server can carry, at a fixed rate; then half of what it can carry."""
    server, sent = plan.nyqst, traffic.Traffic(traffic.CHECK)

    def drive(*, per_second: float = 0.0, seconds: float = 1.0) -> driver.Done:
        in_flight = _OVERLOAD_IN_FLIGHT if per_second else 128
        job = driver.Job(
            server.address, sent, "", in_flight, warm_up_seconds=1.0, seconds=seconds, per_second=per_second
        )
        done = plan.meter.drivers.run(job)
        server.calls += done.calls_in_all
        return done

    carried = max(len(drive().latencies_us) for _ in range(plan.meter.rounds))
    half = drive(per_second=carried / 2)
    before = server.resident_mb()
    twice = drive(per_second=carried * 2, seconds=_OVERLOAD_SECONDS)
    # Begins at once: its warm-up is the second in which the server must recover.
    after = drive(per_second=carried / 2)
    grown = server.resident_mb() - before
    wrong = {error: count for error, count in twice.errors.items() if not error.startswith(_SHED)}
    p99_ms = driver.percentile_ms(twice.latencies_us, 99)
    accepted = len(twice.latencies_us) / _OVERLOAD_SECONDS
    return [
        Row(
            "CheckQuota, twice its load",
            per_second=accepted,
            p50_ms=driver.percentile_ms(twice.latencies_us, 50),
            p95_ms=driver.percentile_ms(twice.latencies_us, 95),
            p99_ms=p99_ms,
            passed=not (wrong or after.errors) and p99_ms < _OVERLOAD_MS_MAX and grown < _GROWTH_MB_MAX,
            errors=wrong,
            note=(
                f"of {twice.calls_in_all / (_OVERLOAD_SECONDS + 1):,.0f} calls a second (it carries {carried:,.0f}),"
                f" {len(twice.shed_us) / _OVERLOAD_SECONDS:,.0f} shed within"
                f" {driver.percentile_ms(twice.shed_us, 50):.1f} ms at the median; p99 at half its load"
                f" {driver.percentile_ms(half.latencies_us, 99):.1f} ms before, a second after"
                f" {driver.percentile_ms(after.latencies_us, 99):.1f} ms; memory {grown:+.1f} MB"
            ),
        )
    ]


def naive(plan: Plan) -> list[Row]:
    """Measure the hand-written service."""
    plan.stand.create("naive")
    server = plan.start(plan.stand.naive("naive"))
    echo, checks, records = plan.meter.compare(
        [
            Subject("echo", plan.echo, traffic.Traffic(traffic.CHECK)),
            Subject("by hand: CheckQuota", server, traffic.Traffic(traffic.CHECK)),
            Subject("by hand: RecordUsage", server, traffic.Traffic(traffic.RECORD)),
        ]
    )
    return [results.row(checks, echo), results.row(records, echo)]


def h2load(plan: Plan) -> list[Row]:
    """Send a fixed request from a driver in C: the maximum of the server alone."""
    program = shutil.which("h2load")
    if program is None:
        note = "left out: h2load is not installed (Debian: apt install nghttp2-client; macOS: brew install nghttp2)"
        return [Row("h2load", note=note)]
    body = plan.stand.folder / "check.bin"
    request = next(traffic.Traffic(traffic.CHECK).requests())
    body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
    rates: dict[str, list[float]] = {"echo": [], "CheckQuota": []}
    for _ in range(plan.meter.rounds):
        for name, server in (("echo", plan.echo), ("CheckQuota", plan.nyqst)):
            began = time.perf_counter()
            server.calls += _H2LOAD_CALLS
            subprocess.run(
                [
                    program,
                    *("-n", str(_H2LOAD_CALLS), "-c", "4", "-m", "32", "-d", str(body)),
                    *("-H", "te: trailers", "-H", "content-type: application/grpc"),
                    *("-H", "authorization: Bearer dev-token"),
                    f"http://{server.address}{traffic.CHECK}",
                ],
                check=True,
                capture_output=True,
            )
            rates[name].append(_H2LOAD_CALLS / (time.perf_counter() - began))
    ratios = [rate / echo for rate, echo in zip(rates["CheckQuota"], rates["echo"], strict=True)]
    return [
        Row("h2load: echo", per_second=statistics.median(rates["echo"])),
        Row(
            "h2load: CheckQuota, hot",
            per_second=statistics.median(rates["CheckQuota"]),
            against="echo",
            ratio=statistics.median(ratios),
            ratios=ratios,
        ),
    ]


def memory(plan: Plan) -> list[Row]:
    """Measure a process's memory after many calls of all kinds, and how much of it was added late."""
    server = plan.nyqst
    before = server.calls
    sizes = []
    for step in range(1, _MEMORY_STEPS + 1):
        while server.calls < before + max(plan.calls - before, plan.calls // 5) * step // _MEMORY_STEPS:
            rpc = (traffic.CHECK, traffic.RECORD)[step % 2]
            done = plan.meter.drivers.run(driver.Job(server.address, traffic.Traffic(rpc), seconds=1.0))
            server.calls += done.calls_in_all
        sizes.append(server.resident_mb())
        plan.meter.say(f"{server.calls:,} calls: {sizes[-1]:.0f} MB")
    growth = sizes[-1] - sizes[0]
    note = f"{sizes[-1]:.0f} MB after {server.calls:,} calls, {growth:+.1f} MB in the last {server.calls - before:,}"
    return [Row("memory of one process", passed=sizes[-1] < _RESIDENT_MB_MAX and growth < _GROWTH_MB_MAX, note=note)]


def _spread(name: str, server: programs.Server, rpc: str, whom: tuple[str, ...]) -> list[Subject]:
    says = {
        "known": f"{traffic.ACCOUNTS:,} accounts",
        "new": "new accounts",
        "hot": "one account",
        "mix": "a mix",
    }
    return [Subject(f"{name}, {says[accounts]}", server, traffic.Traffic(rpc, accounts)) for accounts in whom]


def _against(echo: Rounds, others: list[Rounds], bar: float, aim: float) -> list[Row]:
    first, *rest = others
    return [
        results.row(first, echo, bar=bar, aim=aim),
        *(results.row(measured, echo, bar=round(bar * _SPREAD, 2)) for measured in rest),
    ]


GROUPS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "lone": lone,
    "check": check,
    "h2load": h2load,
    "rated": rated,
    "reserve": reserve,
    "record": record,
    "transports": transports,
    "batch": batch,
    "overload": overload,
    "memory": memory,
    "history": history,
    "naive": naive,
}
