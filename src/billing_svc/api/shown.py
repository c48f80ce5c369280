"""Shows the API's messages to operators in a terminal: messages as JSON, instants and statuses as text."""

from datetime import UTC
from typing import TypeAlias

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from billing.v1 import admin_pb2, subscription_pb2, usage_pb2

# Aliases, so that commands need not import generated modules.
AccountDetails: TypeAlias = admin_pb2.GetAccountResponse
MeterUsage: TypeAlias = usage_pb2.MeterUsage


def to_json(message: Message) -> str:
    """Return a message as JSON with the contract's field names, including zeros and empty values."""
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def instant(value: Timestamp) -> str:
    """Return an instant in UTC to the second; empty if it is not set."""
    return value.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S") if value.seconds else ""


def status(value: int) -> str:
    """Return a subscription's status as a word: `past_due`."""
    return subscription_pb2.Status.Name(subscription_pb2.Status.ValueType(value)).removeprefix("STATUS_").lower()
