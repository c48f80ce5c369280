"""Draws requests that no correct client sends, over gRPC and over HTTP."""

import hashlib
import hmac
import json
import random
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf import descriptor, descriptor_pool, message, message_factory

from billing_svc.api.servicers import services
from tests.billing_svc import processes
from tests.webhook_gateway.conftest import SECRET

Field = descriptor.FieldDescriptor
# The type checker does not know gRPC's stubs' types.
AnyField: TypeAlias = Any

STRINGS = (
    "", " ", "\0", "org_1", "org_2", "runs", "reports", "pro", "free", "monthly", "strict", "run_1", "a" * 128,
    "a" * 129, "a" * 100_000, "\u202e\ufeff", "é", "🦉" * 40, "org_1'; DROP TABLE accounts --", "%s%n{0}", "-1",
    "../../etc/passwd", "https://app.example.com/x", "javascript:alert(1)", "http://[::1", "a@b.c", "AAAA",
    "e30=", "eyJhIjoxfQ", "sub_1",
)  # fmt: skip
INTEGERS = (0, 1, -1, 2, 5, 100, 1000, 5001, 10**12, 10**12 + 1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
SECONDS = (0, 1, -1, 253402300799, 253402300800, -62135596800, -62135596801, 2**63 - 1, -(2**63))


def rpcs() -> dict[str, type[message.Message]]:
    """Return every RPC of the contract with its request's type."""
    pool = descriptor_pool.Default()
    return {
        f"/{service}/{method.name}": message_factory.GetMessageClass(method.input_type)
        for service in services.SERVICES
        for method in pool.FindServiceByName(service).methods
    }


@dataclass(frozen=True)
class Fuzzer:
    """Draws requests that no correct client sends."""

    rng: random.Random

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 1, 2, 7, 40, 300, 5_000)))

    def fill(self, made: message.Message, depth: int = 0) -> message.Message:
        """Set some of a message's fields to extreme values."""
        for field in made.DESCRIPTOR.fields:
            if self.rng.random() < 0.3 or depth > 3:
                continue
            if field.is_repeated:
                for _ in range(self.rng.choice((1, 2, 60))):
                    self._add(made, field, depth)
            elif field.type == Field.TYPE_MESSAGE:
                self.fill(getattr(made, field.name), depth + 1)
                getattr(made, field.name).SetInParent()
            else:
                setattr(made, field.name, self._value(field))
        return made

    def _add(self, made: message.Message, field: AnyField, depth: int) -> None:
        values = getattr(made, field.name)
        if field.message_type is None:
            values.append(self._value(field))
        elif field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            values[self._value(key)] = self._value(value)
        else:
            self.fill(values.add(), depth + 1)

    def _value(self, field: AnyField) -> Any:  # noqa: ANN401 - by its type
        match field.type:
            case Field.TYPE_STRING:
                return self.rng.choice(STRINGS)
            case Field.TYPE_BYTES:
                return self.event() if self.rng.random() < 0.7 else self.noise()
            case Field.TYPE_BOOL:
                return self.rng.random() < 0.5
            case Field.TYPE_INT64:
                return self.rng.choice(SECONDS if field.name == "seconds" else INTEGERS)
            case Field.TYPE_ENUM:
                return self.rng.choice((0, 1, 2, 3, 99, -1, 2**31 - 1))
            case _:
                return self.rng.choice([one for one in INTEGERS if -(2**31) <= one < 2**31])

    def event(self) -> bytes:
        """Return a Stripe event, or bytes that resemble one."""
        event: dict[str, object] = {
            "id": self.rng.choice(("evt_1", "evt_\0", "", 7, None, "e" * 300, f"evt_{self.rng.random()}")),
            "type": self.rng.choice(("customer.subscription.updated", "invoice.paid", "a.b", 1, None, "\ud800")),
            "created": self.rng.choice((0, 10**40, -1, "x", None, 1.5)),
            "livemode": self.rng.choice((False, True, None, "no")),
            "data": self.rng.choice(
                ({"object": {"id": "sub_1", "customer": {"id": "\0"}}}, {"object": []}, [], None, {})
            ),
        }
        for name in list(event):
            if self.rng.random() < 0.1:
                del event[name]
        raw = json.dumps(event).encode()
        if self.rng.random() < 0.2:
            at = self.rng.randrange(len(raw))
            raw = raw[:at] + self.noise() + raw[at + 1 :]
        return self.rng.choice((raw, raw, b"[" * 50_000, raw * 3, b'{"id":' + b"9" * 5_000 + b"}"))

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        known: tuple[tuple[str, str | bytes], ...] = processes.METADATA if self.rng.random() < 0.9 else ()
        more = (
            (
                "x-request-id",
                "".join(chr(self.rng.randint(32, 126)) for _ in range(self.rng.choice((1, 128, 129, 2000)))),
            ),
            (
                "authorization",
                self.rng.choice(("Bearer", "Bearer ", "Basic x", "Bearer dev-token", "Bearer " + "x" * 3000)),
            ),
            ("x-bin", self.noise()[:1000]),
            ("grpc-timeout-x", "1n"),
        )
        return known + tuple(one for one in more if self.rng.random() < 0.15)

    def request(self) -> bytes:
        """Return the bytes of a request to the gateway, valid or hostile."""
        # Some are valid, so that hostile and valid requests arrive together.
        is_honest = self.rng.random() < 0.1
        body = b'{"id": "evt_1", "type": "a.b"}' if is_honest else self.event()
        stamp = int(time.time()) + self.rng.choice((0, 0, 0, -10_000, 10_000))
        mac = hmac.new(SECRET.encode(), b"%d." % stamp + body, hashlib.sha256).hexdigest()
        if is_honest:
            return (
                f"POST /stripe/webhook HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                f"Stripe-Signature: t={stamp},v1={mac}\r\n\r\n"
            ).encode() + body
        signed = self.rng.choice(
            (f"t={stamp},v1={mac}", f"t={stamp},v1={mac}", "t=,v1=", f"t={'9' * 400},v1={mac}", "v1=x", "")
        )
        method = self.rng.choice(("POST", "POST", "POST", "GET", "BREW", "CONNECT"))
        path = self.rng.choice(("/stripe/webhook",) * 3 + ("/", "//", "/%00", "/" + "a" * 9000))
        version = self.rng.choice(("1.1", "1.1", "1.0", "2.0", "9.9"))
        head = [
            f"{method} {path} HTTP/{version}",
            "Host: localhost",
            f"Stripe-Signature: {signed}",
            self.rng.choice(
                (f"Content-Length: {len(body)}",) * 4
                + (
                    f"Content-Length: {len(body) + 9}",
                    "Content-Length: -1",
                    "Content-Length: 99999999999999",
                    "Transfer-Encoding: chunked",
                )
            ),
            *(f"X-{n}: {'y' * 100}" for n in range(self.rng.choice((0, 0, 0, 200)))),
        ]
        raw = "\r\n".join(head).encode() + b"\r\n\r\n" + body
        if self.rng.random() < 0.2:
            at = self.rng.randrange(len(raw))
            raw = raw[:at] + self.noise() + raw[at + self.rng.randint(0, 20) :]
        return self.noise() if self.rng.random() < 0.1 else raw
