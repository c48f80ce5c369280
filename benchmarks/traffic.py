"""Requests as bytes: encoded before they are sent, so that the driver uses little CPU."""

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
# The mix: every second call is for a busy account, the others are for any account.
_BUSY_ACCOUNTS = 10
# Field 2 of RecordUsageRequest and field 6 of CheckQuotaRequest, with the length of a UUID's hex digits.
_EVENT_ID, _REQUEST_ID = b"\x12\x20", b"\x32\x20"
# Batches repeat after so many: encoding 1,000 events takes longer than the server may take for them.
_BATCH_TEMPLATES = 20


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is called, and for which accounts: `known` accounts evenly, `new` accounts, the `hot` account, or a `mix`.

    With `events` each call is a batch of so many events. With `reserve` a check reserves its units.
    """

    rpc: str
    whom: str = "known"
    meter: str = "runs"
    reserve: bool = False
    events: int = 0

    def requests(self) -> Iterator[bytes]:
        """Yield requests without end; each has its own ids."""
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
        """Yield each call's account and its constant parts, encoded."""
        if self.whom == "new":
            run = f"{dice.getrandbits(64):x}"
            return (encoded(f"new_{run}_{n}") for n in itertools.count())
        if self.whom == "hot":
            return itertools.repeat(encoded(HOT_ACCOUNT))
        every = [encoded(account(n)) for n in range(ACCOUNTS)]
        dice.shuffle(every)
        if self.whom == "mix":
            busy = [encoded(account(n)) for n in range(_BUSY_ACCOUNTS)]
            every = [account_id for rare in every for account_id in (dice.choice(busy), rare)]
        return itertools.cycle(every)

    def _batches(self, dice: random.Random) -> Iterator[bytes]:
        single = Traffic(RECORD, self.whom, self.meter)
        parts = single._parts(dice, single._template())
        templates = [list(itertools.islice(parts, self.events)) for _ in range(_BATCH_TEMPLATES)]
        bits = dice.getrandbits
        for template in itertools.cycle(templates):
            # Field 1 of BatchRecordUsageRequest, preceded by its length. An event is shorter than 128 bytes.
            batch = []
            for part in template:
                event = part + _EVENT_ID + b"%032x" % bits(128)
                batch.append(b"\x0a" + bytes((len(event),)) + event)
            yield b"".join(batch)


def account(n: int) -> str:
    """Return the id of a known account; `stand.py` creates the same ids in SQL."""
    return f"org_{n}"
