"""A clock that stands still, and an account."""

from tests.acceptance.conftest import account

# pytest finds fixtures by name. The clock is for those who ask for a still one.
__all__ = ["account"]
