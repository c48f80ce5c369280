"""A bare grpc.aio server that answers each request with itself: the upper bound of what Python's gRPC can do.

`python -m benchmarks.echo ADDRESS`. It parses and writes the service's messages, on the same event loop.
"""

import asyncio
import sys
from typing import Any

import grpc
import uvloop

from benchmarks import traffic
from billing.v1 import quota_pb2, usage_pb2

_REQUESTS: dict[str, Any] = {
    traffic.CHECK: quota_pb2.CheckQuotaRequest,
    traffic.RECORD: usage_pb2.RecordUsageRequest,
}


async def _echo(request: Any, _context: Any) -> Any:  # noqa: ANN401 - any message
    return request


async def serve(address: str) -> None:
    """Serve until the process is killed."""
    server = grpc.aio.server()
    for rpc, kind in _REQUESTS.items():
        _, service, name = rpc.split("/")
        handler = grpc.unary_unary_rpc_method_handler(_echo, kind.FromString, kind.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
