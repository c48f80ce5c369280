"""Grouping: who shares a batch, who waits, who is turned away, and that nobody pays for another's fault."""

import asyncio
from collections.abc import Sequence

import pytest

from billing_svc.platform import errors
from billing_svc.platform.batching import batcher as batching

SECONDS_MAX = 5.0


class Recorder:
    """Answers each item with itself, when it is let; keeps what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise ZeroDivisionError
        return items


@pytest.fixture
def at_once_seconds(monkeypatch: pytest.MonkeyPatch) -> float:
    """A bound for what does not wait, beside a wait so long that no slow machine mixes the two up."""
    monkeypatch.setattr(batching, "WAIT_SECONDS_MAX", 2.0)
    return 1.0


async def test_a_lone_call_goes_out_at_once_and_alone(at_once_seconds: float) -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)
    async with asyncio.timeout(at_once_seconds):
        assert await batcher.submit(1) == 1
    assert recorder.batches == [[1]]


async def test_what_comes_while_a_batch_is_under_way_goes_together() -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)
    recorder.gate.clear()
    calls = [asyncio.create_task(batcher.submit(n)) for n in range(20, 40)]
    await asyncio.sleep(0)
    recorder.gate.set()
    assert await asyncio.gather(*calls) == list(range(20, 40))
    assert recorder.batches == [[20], list(range(21, 40))]


async def test_batches_of_a_steady_crowd_hold_the_crowd() -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)

    async def caller(n: int) -> None:
        for _ in range(50):
            await batcher.submit(n)

    await asyncio.gather(*(caller(n) for n in range(100, 140)))
    late = recorder.batches[len(recorder.batches) // 2 :]
    assert sum(map(len, late)) / len(late) > 30


async def test_after_a_crowd_a_lone_call_waits_once_and_no_longer(at_once_seconds: float) -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)
    await asyncio.gather(*(batcher.submit(n) for n in range(100, 150)))
    await batcher.submit(1)
    async with asyncio.timeout(at_once_seconds):
        await batcher.submit(2)


async def test_past_the_bound_calls_are_turned_away_at_once_and_the_rest_is_answered() -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)
    recorder.gate.clear()
    calls = [asyncio.create_task(batcher.submit(100 + n)) for n in range(1 + batching.QUEUE_MAX)]
    await asyncio.sleep(0)
    # Refused at once; the limit is for a batcher without the bound, where it would wait for the gate.
    with pytest.raises(errors.Overloaded):
        await asyncio.wait_for(batcher.submit(1), SECONDS_MAX)
    recorder.gate.set()
    assert len(await asyncio.gather(*calls)) == 1 + batching.QUEUE_MAX
    assert await batcher.submit(1) == 1


async def test_a_cancelled_call_never_reaches_the_database() -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)
    recorder.gate.clear()
    first, *others = [asyncio.create_task(batcher.submit(n)) for n in range(20, 20 + 2 + batching.BATCH_MAX)]
    await asyncio.sleep(0)
    *gone, last = others
    for call in gone:
        call.cancel()
    await asyncio.wait(gone)
    recorder.gate.set()
    assert await first == 20
    # More were cancelled than a batch holds: the one behind them is not forgotten.
    async with asyncio.timeout(1):
        assert await last == 20 + 1 + batching.BATCH_MAX
    assert [len(batch) for batch in recorder.batches] == [1, 1]


async def test_an_item_that_brings_a_defect_out_fails_alone() -> None:
    recorder = Recorder()
    batcher = batching.Batcher("test", recorder.run)
    recorder.gate.clear()
    calls = [asyncio.create_task(batcher.submit(n)) for n in (10, 11, 12, 13, 14)]
    await asyncio.sleep(0)
    recorder.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [result for result in results if not isinstance(result, BaseException)] == [10, 11, 12, 14]
    assert isinstance(results[3], ZeroDivisionError)
