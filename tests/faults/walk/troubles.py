"""Faults: of Stripe's API towards the service, of its events, meters and drafts."""

from dataclasses import dataclass

from tests.faults.walk.walker import Act, Walker

MOST = 0.4


@dataclass
class Trouble:
    """Answers the service's requests in Stripe's place; what people do by hand passes."""

    walker: Walker
    status: int
    probability: float
    has_effect: bool

    async def strike(self, method: str, path: str) -> int | None:
        # Events are read by the test alone.
        if self.walker.is_by_hand or path == "/v1/events" or (self.has_effect and method == "GET"):
            return None
        return self.status if self.walker.luck.random() < self.probability else None


def _begin(walker: Walker, status: int, probability: float, *, has_effect: bool = False) -> None:
    trouble, faults = Trouble(walker, status, probability, has_effect), walker.ledger.world.sandbox.faults
    faults.clear()
    if has_effect:
        faults.after = trouble.strike
    else:
        faults.before = trouble.strike
    walker.has_faults = True
    walker.note(f"  {status} with probability {probability}{', after the effect' if has_effect else ''}")


async def limit_the_rate(walker: Walker) -> None:
    """Stripe answers 429."""
    _begin(walker, 429, MOST)


async def break_stripe(walker: Walker) -> None:
    """Stripe answers 500 without an effect."""
    _begin(walker, 500, MOST)


async def lose_answers(walker: Walker) -> None:
    """Stripe does what it is asked, and its answer is lost."""
    _begin(walker, 503, MOST, has_effect=True)


async def be_away(walker: Walker) -> None:
    """Stripe is away."""
    _begin(walker, 503, 1.0)


async def lose_meter_events(walker: Walker) -> None:
    """Meter events are counted, and answered with 500 under their idempotency key, or not at all."""
    kinds: list[dict[str, object]] = [
        {"kind": "broken", "does_it": True},
        {"kind": "cut"},
        {"kind": "lost_answer", "seconds": 0.0},
    ]
    kind = walker.draw.choice(kinds)
    rule = {**kind, "path": "/v1/billing/meter_events", "probability": 0.5, "seed": walker.draw.randrange(2**31)}
    await walker.control("POST", "faults", rule)
    walker.has_faults = True


async def count_late(walker: Walker) -> None:
    """Meter events count only minutes later."""
    await walker.control("POST", "delays", {"meters": walker.draw.choice((0, 60, 400))})


async def wait_with_drafts(walker: Walker) -> None:
    """Drafts become final later, or in an hour as usual."""
    await walker.control("POST", "drafts", {"seconds": walker.draw.choice((3_600, 3_600, 90_000, 259_000))})


async def end_dunning(walker: Walker) -> None:
    """Choose what becomes of a subscription that is not paid."""
    ends = walker.draw.choice(("canceled", "unpaid", "paused"))
    await walker.control("POST", "dunning", {"ends": ends})


async def deliver_late(walker: Walker) -> None:
    """Events come late, twice and out of order."""
    walker.post.is_late = True


async def recover(walker: Walker) -> None:
    """All faults end, and the events that were late arrive."""
    await end_faults(walker)
    await walker.post.release()


async def end_faults(walker: Walker) -> None:
    walker.ledger.world.sandbox.faults.clear()
    await walker.ledger.world.sandbox.control("DELETE", "faults")
    walker.has_faults = False


ACTS: tuple[tuple[Act, int], ...] = (
    (limit_the_rate, 1),
    (break_stripe, 1),
    (lose_answers, 1),
    (be_away, 1),
    (lose_meter_events, 1),
    (count_late, 1),
    (wait_with_drafts, 1),
    (end_dunning, 2),
    (deliver_late, 3),
    (recover, 8),
)
