"""Holds from several callers against two server processes: exactly what the limit has room for, every time."""

import asyncio
import itertools
import os
from collections import Counter
from pathlib import Path

import sqlalchemy as sa

from billing.v1 import decision_pb2, quota_pb2
from billing_svc.platform.database import tables
from tests.billing_svc import books, processes
from tests.billing_svc.service import Billing

LIMIT = 50
CALLS = 200
CHANNELS = 4
# A hundred, for a long run.
ROUNDS = int(os.environ.get("BILLING_TEST_HOLD_ROUNDS", "5"))


async def test_two_hundred_holds_on_fifty_admit_exactly_fifty(
    billing: Billing, database_url: str, tmp_path: Path
) -> None:
    async with processes.servers(database_url, tmp_path, 2) as started:
        channels = [started[n % 2].channel() for n in range(CHANNELS)]
        stubs = itertools.cycle([processes.quota_stub(channel) for channel in channels])
        for n in range(ROUNDS):
            account_id = f"org_{n}"
            async with billing.engine.begin() as conn:
                override = {"account_id": account_id, "meter": "runs", "included": LIMIT, "note": "", "set_by": "test"}
                await conn.execute(sa.insert(tables.account_overrides).values(**override, set_at=billing.clock.now()))
            answers = await asyncio.gather(
                *(
                    next(stubs).CheckQuota(
                        quota_pb2.CheckQuotaRequest(
                            account_id=account_id, meter="runs", reserve=True, request_id=f"job_{job}"
                        ),
                        metadata=processes.METADATA,
                    )
                    for job in range(CALLS)
                )
            )
            decisions = Counter(answer.decision for answer in answers)
            assert decisions == {decision_pb2.DECISION_ALLOWED: LIMIT, decision_pb2.DECISION_DENIED: CALLS - LIMIT}
            assert len({answer.reservation_id for answer in answers if answer.reservation_id}) == LIMIT
        for channel in channels:
            await channel.close()
    async with billing.engine.connect() as conn:
        reserved = (await conn.execute(sa.select(tables.usage_counters.c.reserved))).scalars().all()
    assert reserved == [LIMIT] * ROUNDS
    await books.assert_balanced(billing.engine)
