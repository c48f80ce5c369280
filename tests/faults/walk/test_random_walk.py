"""A random walk of a person in Stripe's dashboard and of a customer in the portal, over three months, with faults."""

import os
import random
import time

import pytest

from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.sandboxed import World
from tests.faults import runs
from tests.faults.walk import customers, items, lives, money, troubles, usage, verdict
from tests.faults.walk.mail import LateWorld
from tests.faults.walk.shop import CATALOG, Shop
from tests.faults.walk.walker import Walker

ACTS = (*items.ACTS, *lives.ACTS, *money.ACTS, *customers.ACTS, *usage.ACTS, *troubles.ACTS)
# BILLING_WALKS=50 BILLING_WALK_ACTS=120 runs for long; BILLING_WALK_FIRST=17 begins with that seed.
FIRST = int(os.environ.get("BILLING_WALK_FIRST", "0"))
WALKS = int(os.environ.get("BILLING_WALKS", "3"))
NUMBER = int(os.environ.get("BILLING_WALK_ACTS", "40"))


async def walk(world: World, seed: int, number: int) -> Walker:
    """Walk with a seed, come to rest, and judge."""
    post = LateWorld(world.billing, world.sandbox, world.stripe, world.inbox, luck=random.Random(seed))  # noqa: S311
    ledger = Ledger(post)
    await ledger.sell(CATALOG)
    walker = Walker(ledger, post, await Shop.look(world.sandbox), seed)
    try:
        await walker.do(customers.buy)
        await walker.walk(ACTS, number)
        await come_to_rest(walker)
        await verdict.judge(walker)
    except AssertionError:
        raise
    except Exception as error:
        error.add_note(walker.told())
        raise
    return walker


async def come_to_rest(walker: Walker) -> None:
    """End all faults, and let three days pass; then a period, so that all invoices are there."""
    await troubles.recover(walker)
    await walker.control("POST", "drafts", {"seconds": 3_600})
    await walker.control("POST", "delays", {"meters": 0})
    await customers.give_a_card(walker)
    await walker.work()
    for _ in range(6):
        await walker.ledger.advance(hours=6)
    await walker.ledger.advance(days=40)
    await walker.work()


def test_there_are_more_than_forty_acts() -> None:
    assert len({act for act, _ in ACTS}) > 40


@pytest.mark.parametrize("seed", range(FIRST, FIRST + WALKS))
async def test_whatever_people_do_the_rules_hold(
    world: World, monkeypatch: pytest.MonkeyPatch, run: runs.Run, seed: int
) -> None:
    monkeypatch.setattr("stripe._http_client.HTTPClient.INITIAL_DELAY", 0.001)
    began = time.monotonic()
    walker = await walk(world, seed, NUMBER)
    run.count(acts=sum(walker.done.values()), kinds=len(walker.done), comparisons=walker.calm_checks)
    assert walker.calm_checks
    print(time.monotonic() - began, walker.done)
