"""A random walk of a person in Stripe's dashboard and of a customer in the portal, over three months, with faults.

A failing seed prints its acts as a list, so that they can be repeated by hand.
"""

import os
import random

import pytest

from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.sandboxed import World
from tests.faults import runs
from tests.faults.walk import customers, items, lives, money, troubles, usage, verdict
from tests.faults.walk.mail import LateWorld
from tests.faults.walk.shop import CATALOG, Shop
from tests.faults.walk.walker import Walker

ACTS = (*items.ACTS, *lives.ACTS, *money.ACTS, *customers.ACTS, *usage.ACTS, *troubles.ACTS)
# BILLING_WALKS=100 runs for long; BILLING_WALK_FIRST=17 begins with that seed. BILLING_WALK_ACTS belongs to the seed.
FIRST = os.environ.get("BILLING_WALK_FIRST")
WALKS = os.environ.get("BILLING_WALKS")
ACTS_NUMBER = int(os.environ.get("BILLING_WALK_ACTS", "40"))
SHORT_ACTS_NUMBER = 15
# In a run of `make faults`: each walk takes ten seconds and more.
WALKS_A_MINUTE = 5


def seeds() -> range:
    """Return the seeds of the long walks: in `make faults` as many as its minutes allow; none elsewhere."""
    run = runs.Run.from_environment()
    walks = 0 if run.minutes is None else max(3, round(WALKS_A_MINUTE * run.minutes))
    first = 0 if run.minutes is None else run.seed
    return range(first if FIRST is None else int(FIRST), (first if FIRST is None else int(FIRST)) + int(WALKS or walks))


@pytest.fixture
async def walker(world: World, monkeypatch: pytest.MonkeyPatch, seed: int) -> Walker:
    """Return somebody who has not begun to walk, in a world whose events may be late."""
    monkeypatch.setattr("stripe._http_client.HTTPClient.INITIAL_DELAY", 0.001)
    luck = random.Random(seed)  # noqa: S311 - repeatable, not secret
    post = LateWorld(world.billing, world.sandbox, world.stripe, world.inbox, luck=luck)
    ledger = Ledger(post)
    await ledger.sell(CATALOG)
    return Walker(ledger, post, await Shop.look(world.sandbox), seed)


async def walk(walker: Walker, number: int, run: runs.Run) -> None:
    """Walk, come to rest, and judge."""
    try:
        await walker.do(customers.buy)
        await walker.walk(ACTS, number, usage.use)
        await come_to_rest(walker)
        await verdict.judge(walker)
    except Exception as error:
        error.add_note(walker.told())
        raise
    run.count(
        acts=sum(walker.done.values()),
        kinds_of_acts=len(walker.done),
        comparisons_of_the_plan=walker.comparisons,
        units_beyond=walker.uses.beyond,
    )


async def come_to_rest(walker: Walker) -> None:
    """End all faults, and let a period pass, so that all invoices are there."""
    await troubles.recover(walker)
    await walker.control("POST", "drafts", {"seconds": 3_600})
    await walker.control("POST", "delays", {"meters": 0})
    await customers.give_a_card(walker)
    await walker.work()
    for _ in range(6):
        await walker.ledger.advance(hours=6)
    await walker.ledger.advance(days=40)
    await walker.work()


def test_there_are_more_than_forty_kinds_of_acts() -> None:
    assert len({act for act, _ in ACTS}) > 40


@pytest.mark.parametrize("seed", [0, 1])
async def test_the_rules_hold_in_short_walks(walker: Walker, run: runs.Run) -> None:
    await walk(walker, SHORT_ACTS_NUMBER, run)


@pytest.mark.long
@pytest.mark.parametrize("seed", seeds())
async def test_the_rules_hold_whatever_people_do(walker: Walker, run: runs.Run) -> None:
    await walk(walker, ACTS_NUMBER, run)
