"""The gRPC server: two transports, which pass calls from gRPC's core to handlers on the event loop (ADR 0011, 0017)."""

import os


def prepare() -> None:
    """Let the thread that polls for gRPC's events read the sockets too; call this before `grpc` is imported.

    By default the core polls in one thread and reads in another, and each call waits until both have woken.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
