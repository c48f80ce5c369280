import pytest

from tests.billing_svc.money.ledger import TIERS, Ledger
from tests.billing_svc.sandboxed import World


@pytest.fixture
def ledger(world: World) -> Ledger:
    return Ledger(world)


@pytest.fixture
async def tiers(ledger: Ledger) -> Ledger:
    """Return an account with the smaller of two plans."""
    await ledger.sell(TIERS)
    await ledger.buy(plan="small")
    return ledger
