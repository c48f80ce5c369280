"""Measures in short rounds that alternate between the subjects, because the machine is shared and noisy."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from benchmarks import driver, programs, traffic

# A server's first calls find cold caches and an empty pool.
_WARM_UP_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a server and its load."""

    name: str
    server: programs.Server
    sent: traffic.Traffic
    in_flight: int = 128


@dataclass(slots=True)
class Round:
    """The result of a round of a subject."""

    done: driver.Done
    server_cpu_seconds: float
    postgres_cpu_seconds: float
    # The CPU that other processes of the machine used, in cores: 0 if nothing else runs.
    others_busy: float

    @property
    def per_second(self) -> float:
        """Successful calls per second."""
        return len(self.done.latencies_us) / self.done.seconds


@dataclass(slots=True)
class Rounds:
    """All rounds of a subject."""

    subject: Subject
    rounds: list[Round] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """The median over the rounds."""
        return statistics.median(each.per_second for each in self.rounds)

    def ratios(self, other: "Rounds") -> list[float]:
        """Return the throughput relative to another subject's, for each round."""
        return [each.per_second / beside.per_second for each, beside in zip(self.rounds, other.rounds, strict=True)]

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies of all rounds."""
        return driver.percentile_ms([latency for each in self.rounds for latency in each.done.latencies_us], percent)

    def share(self, count: Callable[[Round], float]) -> float:
        """Return a count of the rounds divided by their calls."""
        return sum(map(count, self.rounds)) / max(1, sum(each.done.calls_in_all for each in self.rounds))

    @property
    def driver_busy(self) -> float:
        """The CPU that the driver used, in cores."""
        return self.share(lambda each: each.done.cpu_seconds) * self.per_second

    def cpu_ratio(self, other: "Rounds") -> float:
        """Return the other's CPU time per call, of all processes, divided by this subject's; hardly noisy."""
        return other.share(_cpu_seconds) / self.share(_cpu_seconds)

    @property
    def others_busy(self) -> float:
        """The mean of the cores that other processes used."""
        return statistics.fmean(each.others_busy for each in self.rounds)

    def errors(self) -> dict[str, int]:
        """Return how often each error occurred."""
        total: dict[str, int] = {}
        for each in self.rounds:
            for error, count in each.done.errors.items():
                total[error] = total.get(error, 0) + count
        return total


class Drivers:
    """The driver's processes, which share the calls in flight."""

    def __init__(self, count: int, folder: Path) -> None:
        arguments = ["-m", "benchmarks.driver"]
        self._log = folder / "driver.log"
        self._processes = [
            programs.spawn(arguments, programs.environment(), self._log, piped=True) for _ in range(count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def run(self, job: driver.Job) -> driver.Done:
        """Run a job, and wait for its result."""
        used = self._processes[: max(1, min(len(self._processes), job.in_flight))]
        job = driver.Job(
            job.address,
            job.sent,
            job.database_url,
            job.in_flight // len(used),
            job.warm_up_seconds,
            job.seconds,
            job.calls // len(used),
            job.per_second / len(used),
        )
        for process in used:
            assert process.stdin is not None
            print(json.dumps(asdict(job)), file=process.stdin, flush=True)
        total = driver.Done()
        for done in map(self._answer, used):
            total.calls_in_all += done.calls_in_all
            total.seconds = max(total.seconds, done.seconds)
            total.latencies_us += done.latencies_us
            total.shed_us += done.shed_us
            total.marked += done.marked
            total.cpu_seconds += done.cpu_seconds
            for error, count in done.errors.items():
                total.errors[error] = total.errors.get(error, 0) + count
        return total

    def _answer(self, process: subprocess.Popen[str]) -> driver.Done:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the driver failed:\n{self._log.read_text()[-2000:]}")
        return driver.Done(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Meter:
    """The settings of all measurements of a run."""

    drivers: Drivers
    postgres_cpu_seconds: Callable[[], float]
    say: Callable[[str], None]
    rounds: int
    seconds: float

    def compare(self, subjects: Sequence[Subject], seconds: float | None = None) -> list[Rounds]:
        """Measure the subjects by turns; each round begins with the first subject, to which the others are compared."""
        every = [Rounds(subject) for subject in subjects]
        for subject in subjects:
            self._drive(subject, _WARM_UP_SECONDS, 0.0)
        for n in range(self.rounds):
            for measured in every:
                measured.rounds.append(self._drive(measured.subject, seconds or self.seconds, 0.5))
            rates = ", ".join(f"{measured.subject.name} {measured.rounds[-1].per_second:,.0f}/s" for measured in every)
            self.say(f"round {n + 1} of {self.rounds}: {rates}")
        return every

    def _drive(self, subject: Subject, seconds: float, warm_up_seconds: float) -> Round:
        began, busy = time.monotonic(), programs.machine_cpu_seconds()
        server, postgres = subject.server.cpu_seconds(), self.postgres_cpu_seconds()
        done = self.drivers.run(
            driver.Job(
                address=subject.server.address,
                sent=subject.sent,
                in_flight=subject.in_flight,
                warm_up_seconds=warm_up_seconds,
                seconds=seconds,
            )
        )
        subject.server.calls += done.calls_in_all
        server, postgres = subject.server.cpu_seconds() - server, self.postgres_cpu_seconds() - postgres
        others = programs.machine_cpu_seconds() - busy - server - postgres - done.cpu_seconds
        return Round(done, server, postgres, max(0.0, others / (time.monotonic() - began)))


def _cpu_seconds(each: Round) -> float:
    return each.server_cpu_seconds + each.postgres_cpu_seconds + each.done.cpu_seconds
