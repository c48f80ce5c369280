"""Checks a server's health as a client."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


async def is_serving(address: str, seconds_max: float) -> bool:
    """Say whether the server at a plaintext host:port answers its health check with SERVING in time."""
    # A new channel each time: a channel whose connection failed waits before it connects again.
    async with grpc.aio.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=seconds_max
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
