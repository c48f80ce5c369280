"""A Stripe that returns the objects that a test chooses, in any API version and form."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

PAGE_SIZE = 100
OK, NOT_FOUND = 200, 404


@dataclass
class StandIn:
    """Answers GET requests from `objects`, by path; other paths are a 404. Keeps a list of the reads."""

    objects: dict[str, Any] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    # The status of every answer, if set, in place of the object.
    status: int | None = None
    # The body of every answer, if set.
    body: bytes | None = None

    def put(self, data: Mapping[str, Any]) -> None:
        """Serve an object under its id."""
        folder = {"in_": "invoices", "sub": "subscriptions"}[data["id"][:3]]
        self.objects[f"/v1/{folder}/{data['id']}"] = data

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.reads.append(scope["path"])
        found = self.objects.get(scope["path"])
        if isinstance(found, list):
            found = _page(found, parse_qs(scope["query_string"].decode()))
        missing = {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "No such object"}}
        headers = [(b"content-type", b"application/json"), (b"request-id", b"req_1")]
        status = self.status or (NOT_FOUND if found is None else OK)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body(found if status == OK else missing)})

    def _body(self, answer: object) -> bytes:
        return json.dumps(answer).encode() if self.body is None else self.body


def _page(rows: list[Any], query: Mapping[str, list[str]]) -> dict[str, Any]:
    after = query.get("starting_after", [""])[0]
    start = next((number + 1 for number, row in enumerate(rows) if row["id"] == after), 0)
    return {"object": "list", "data": rows[start : start + PAGE_SIZE], "has_more": start + PAGE_SIZE < len(rows)}
