import asyncio

import pytest

from stripe_sandbox.time import advancing
from tests.stripe_sandbox.conftest import Sandbox, make_offer
from tests.stripe_sandbox.time.clocks import HOUR, clock, session


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90m", 5_400), ("12h", 43_200), ("35d", 3_024_000), ("1d12h", 129_600), ("2w", 1_209_600)],
)
def test_a_duration_is_read_in_its_units(text: str, seconds: int) -> None:
    assert advancing.read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "35", "d", "1.5d", "-1d", "1d 2h", "1y", "9999999d"])
def test_what_is_no_duration_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        advancing.read_duration(text)


async def test_advancing_shows_what_happens_on_the_way(sandbox: Sandbox) -> None:
    offer = await make_offer(sandbox)
    expiring = await session(sandbox, offer.base, (await clock(sandbox))["now"] + HOUR)
    shown: list[str] = []
    await asyncio.to_thread(advancing.advance, sandbox.url, 24 * HOUR, 0.0, shown.append)
    assert (await clock(sandbox))["offset_seconds"] == 24 * HOUR
    assert [line for line in shown if f"{expiring} expires" in line]
    assert (len(shown), shown[0][:6], shown[-1][:6]) == (3, "it is ", "it is ")


async def test_advancing_without_a_sandbox_fails_and_says_why() -> None:
    with pytest.raises(advancing.Failed, match="no sandbox answers"):
        await asyncio.to_thread(advancing.advance, "http://127.0.0.1:9", 1, 0.0, print)
