"""The gRPC server: calls from the core's completion queue onto the event loop, many at a time (ADR 0011)."""

import os


def prepare() -> None:
    """Choose how gRPC's core reads, before it is loaded: who waits for events reads the sockets too.

    Its own event engine has one thread that polls and another that reads, and a call waits for both to wake.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
