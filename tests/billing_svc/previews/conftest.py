"""A clock that stands still, and an account."""

from tests.acceptance.conftest import account, service_clock

# pytest finds fixtures by name.
__all__ = ["account", "service_clock"]
