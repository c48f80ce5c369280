"""The gRPC server: calls from the core's completion queue onto the event loop, many at a time (ADR 0011)."""
