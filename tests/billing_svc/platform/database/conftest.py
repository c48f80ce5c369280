"""These tests make tables of their own, so they act as the owner."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing_svc.platform.database import transactions


@pytest.fixture(name="transactions")
async def database_transactions(engine: AsyncEngine) -> AsyncIterator[transactions.Transactions]:
    runner = transactions.Transactions(engine)
    yield runner
    await runner.drain()
