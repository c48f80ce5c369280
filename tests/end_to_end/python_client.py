"""A caller in Python, with the token of `dev` and a deadline on every call."""

from typing import TypeVar

import grpc

from billing.v1 import quota_pb2, quota_pb2_grpc, subscription_pb2_grpc, usage_pb2, usage_pb2_grpc

TOKEN = "dev-token"
CALL_SECONDS_MAX = 10
# A proxy in the environment must not be used for this machine.
CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0),)

Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """The stubs."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.quota = quota_pb2_grpc.QuotaServiceStub(channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(channel)
        self.subscriptions = subscription_pb2_grpc.SubscriptionServiceStub(channel)

    def call(self, rpc: "grpc.UnaryUnaryMultiCallable[Request, Response]", request: Request) -> Response:
        return rpc(request, timeout=CALL_SECONDS_MAX, metadata=(("authorization", f"Bearer {TOKEN}"),))

    def check(self, account: str, quantity: int = 1) -> quota_pb2.CheckQuotaResponse:
        request = quota_pb2.CheckQuotaRequest(account_id=account, meter="runs", quantity=quantity)
        return self.call(self.quota.CheckQuota, request)

    def record(self, account: str, event_id: str, quantity: int = 1) -> usage_pb2.RecordUsageResponse:
        request = usage_pb2.RecordUsageRequest(account_id=account, event_id=event_id, meter="runs", quantity=quantity)
        return self.call(self.usage.RecordUsage, request)
