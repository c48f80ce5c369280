"""The contract is documentation: what it must say, and the names that others script against."""

import importlib.resources
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"

STATUS_CODES = {code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Element:
    """A service, RPC, message, field, enum or value, with the comment that stands before it."""

    kind: str
    name: str
    comment: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Every file of the contract, with its comments."""
    out = tmp_path_factory.mktemp("contract") / "set.bin"
    with importlib.resources.as_file(importlib.resources.files("grpc_tools") / "_proto") as well_known:
        includes = [f"--proto_path={PROTO}", f"--proto_path={well_known}"]
        sources = [str(path) for path in sorted(PROTO.glob("billing/v1/*.proto"))]
        command = [sys.executable, "-m", "grpc_tools.protoc", *includes, "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={out}", *sources], check=True)
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


@pytest.fixture(scope="module")
def elements(files: list[descriptor_pb2.FileDescriptorProto]) -> list[Element]:
    return [element for file in files for element in elements_of(file)]


def elements_of(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Element]:
    """Walk a file. A path is field numbers of FileDescriptorProto and indexes, as source_code_info has them."""
    comments = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}
    for i, service in enumerate(file.service):
        yield Element("service", service.name, comments.get((6, i), ""))
        for j, method in enumerate(service.method):
            yield Element("rpc", f"{service.name}.{method.name}", comments.get((6, i, 2, j), ""))
    for i, message in enumerate(file.message_type):
        # The only nested messages are the entries of maps, which have no source of their own.
        assert all(nested.options.map_entry for nested in message.nested_type), message.name
        assert not message.enum_type, message.name
        yield Element("message", message.name, comments.get((4, i), ""))
        for j, field in enumerate(message.field):
            yield Element("field", f"{message.name}.{field.name}", comments.get((4, i, 2, j), ""))
    for i, enum in enumerate(file.enum_type):
        yield Element("enum", enum.name, comments.get((5, i), ""))
        for j, value in enumerate(enum.value):
            yield Element("value", f"{enum.name}.{value.name}", comments.get((5, i, 2, j), ""))


def test_everything_has_a_comment(elements: list[Element]) -> None:
    assert [f"{element.kind} {element.name}" for element in elements if not element.comment] == []


def test_every_rpc_says_how_to_retry_what_it_depends_on_and_what_to_do_when_down(elements: list[Element]) -> None:
    rpcs = [element for element in elements if element.kind == "rpc"]
    assert len(rpcs) == 28
    for rpc in rpcs:
        labels = re.findall(r"^ ?(Retry|Depends on|When down): \S", rpc.comment, re.MULTILINE)
        assert labels == ["Retry", "Depends on", "When down"], rpc.name


def test_every_error_reason_says_its_code_and_metadata(elements: list[Element]) -> None:
    reasons = [element for element in elements if element.name.startswith("ErrorReason.ERROR_REASON_")]
    assert len(reasons) > 30
    for reason in reasons[1:]:  # the first is UNSPECIFIED
        assert reason.comment.split(".")[0] in STATUS_CODES, reason.name
        assert re.search(r"\bMetadata:\s+\S", reason.comment), reason.name


def test_no_field_is_floating_point(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    types = {field.type for file in files for message in file.message_type for field in message.field}
    field = descriptor_pb2.FieldDescriptorProto
    assert not types & {field.TYPE_FLOAT, field.TYPE_DOUBLE}


def test_callers_need_nothing_but_protobuf(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    imports = {name for file in files for name in file.dependency}
    assert all(name.startswith(("billing/v1/", "google/protobuf/")) for name in imports)


RPCS = {
    "QuotaService": "CheckQuota ReleaseReservation",
    "UsageService": "RecordUsage BatchRecordUsage GetUsage CorrectUsage",
    "SubscriptionService": "GetSubscription CreateCheckout CreatePortalSession SetPayAsYouGo ChangePlan "
    "CancelSubscription ResumeSubscription ListPlans PreviewCost ListInvoices ListAlerts AcknowledgeAlert",
    "AdminService": "ListAccounts GetAccount SetOverride RemoveOverride ListAllInvoices ListAuditEntries "
    "ListStripeEvents ListFindings ReplayStripeEvents",
    "StripeEventService": "AcceptStripeEvent",
}

FIELDS = {
    "CheckQuotaRequest": "account_id meter operation quantity reserve request_id reservation_ttl",
    "CheckQuotaResponse": "decision reason used reserved included remaining reservation_id",
    "RecordUsageRequest": "account_id event_id meter operation quantity level occurred_at reservation_id retry_attempt "
    "properties if_exceeded",
    "RecordUsageResponse": "duplicate used cost",
    "GetSubscriptionResponse": "subscription",
    "Subscription": "plan status period_start period_end cancel_at_period_end cancel_at pay_as_you_go",
    "CreateCheckoutRequest": "account_id plan price quantity success_url cancel_url customer_email request_id",
    "CreateCheckoutResponse": "session_id url expires_at",
    "GetUsageResponse": "meters",
    "MeterUsage": "meter used included percent",
    "BatchRecordUsageRequest": "events",
}

VALUES = {
    "Decision": "DECISION_UNSPECIFIED DECISION_ALLOWED DECISION_DENIED",
    "Status": "STATUS_UNSPECIFIED STATUS_NONE",
}


def test_services_have_exactly_their_rpcs(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    found = {service.name: [rpc.name for rpc in service.method] for file in files for service in file.service}
    assert found == {service: names.split() for service, names in RPCS.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_fixed_field_names_come_first_in_their_order(
    files: list[descriptor_pb2.FileDescriptorProto], name: str
) -> None:
    (message,) = [message for file in files for message in file.message_type if message.name == name]
    fixed = FIELDS[name].split()
    numbers = {field.name: field.number for field in message.field}
    assert {field: numbers.get(field) for field in fixed} == {field: i for i, field in enumerate(fixed, start=1)}


@pytest.mark.parametrize("name", VALUES)
def test_fixed_enum_values(files: list[descriptor_pb2.FileDescriptorProto], name: str) -> None:
    (enum,) = [enum for file in files for enum in file.enum_type if enum.name == name]
    fixed = VALUES[name].split()
    assert [(value.name, value.number) for value in enum.value][: len(fixed)] == [(v, i) for i, v in enumerate(fixed)]


def test_generating_again_changes_nothing() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "generate.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
