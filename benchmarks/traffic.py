"""Requests as bytes: what a call carries is encoded before it is sent, so that the driver does next to nothing."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from google.protobuf.message import Message

from billing.v1 import quota_pb2, usage_pb2

CHECK = "/billing.v1.QuotaService/CheckQuota"
RECORD = "/billing.v1.UsageService/RecordUsage"
BATCH = "/billing.v1.UsageService/BatchRecordUsage"

ACCOUNTS = 100_000
HOT_ACCOUNT = "hot"
# The mix: every second call is for one of these, the others for any account.
_BUSY_ACCOUNTS = 10
# Field 2 of RecordUsageRequest and field 6 of CheckQuotaRequest, with the length of a UUID's hex digits.
_EVENT_ID, _REQUEST_ID = b"\x12\x20", b"\x32\x20"
# Batches repeat after this many: encoding 1,000 events takes longer than the server may take.
_BATCH_TEMPLATES = 20


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is called, for whom: `known` accounts evenly, `new` ones, the `hot` one, or a `mix`.

    With `events` the call is a batch of so many. With `reserve` a check holds its units.
    """

    rpc: str
    whom: str = "known"
    meter: str = "runs"
    reserve: bool = False
    events: int = 0

    def requests(self) -> Iterator[bytes]:
        """Yield requests without end, each with ids of its own."""
        # Not seeded: ids must differ from those of earlier rounds.
        dice = random.Random()  # noqa: S311 - no secret
        if self.events:
            yield from self._batches(dice)
        parts = self._parts(dice, self._template())
        if self.rpc == CHECK and not self.reserve:
            yield from parts
        tag = _EVENT_ID if self.rpc == RECORD else _REQUEST_ID
        bits = dice.getrandbits
        for part in parts:
            yield part + tag + b"%032x" % bits(128)

    def _template(self) -> Callable[[str], bytes]:
        def encoded(account: str) -> bytes:
            message: Message
            if self.rpc == CHECK:
                message = quota_pb2.CheckQuotaRequest(
                    account_id=account, meter=self.meter, quantity=1, reserve=self.reserve
                )
            else:
                message = usage_pb2.RecordUsageRequest(account_id=account, meter=self.meter, quantity=1)
            return message.SerializeToString()

        return encoded

    def _parts(self, dice: random.Random, encoded: Callable[[str], bytes]) -> Iterator[bytes]:
        """Yield each call's account and what does not change, encoded."""
        if self.whom == "new":
            run = f"{dice.getrandbits(64):x}"
            return (encoded(f"new_{run}_{n}") for n in itertools.count())
        if self.whom == "hot":
            return itertools.repeat(encoded(HOT_ACCOUNT))
        every = [encoded(account(n)) for n in range(ACCOUNTS)]
        dice.shuffle(every)
        if self.whom == "mix":
            busy = [encoded(account(n)) for n in range(_BUSY_ACCOUNTS)]
            every = [one for rare in every for one in (dice.choice(busy), rare)]
        return itertools.cycle(every)

    def _batches(self, dice: random.Random) -> Iterator[bytes]:
        single = Traffic(RECORD, self.whom, self.meter)
        parts = single._parts(dice, single._template())
        templates = [list(itertools.islice(parts, self.events)) for _ in range(_BATCH_TEMPLATES)]
        bits = dice.getrandbits
        for template in itertools.cycle(templates):
            # Field 1 of BatchRecordUsageRequest, length first. An event here is shorter than 128 bytes.
            batch = []
            for part in template:
                event = part + _EVENT_ID + b"%032x" % bits(128)
                batch.append(b"\x0a" + bytes((len(event),)) + event)
            yield b"".join(batch)


def account(n: int) -> str:
    """Return the id of a known account; `stand.py` makes the same ones in SQL."""
    return f"org_{n}"
