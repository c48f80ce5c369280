"""A payment link's address: each visit begins a checkout."""

import html

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors
from stripe_sandbox.api import requests
from stripe_sandbox.customers import payment_links
from stripe_sandbox.pages import layout


class PaymentLinkPages:
    """The endpoint: GET redirects to the page of a new checkout session."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/pay/{link_id}", self.open, methods=["GET"])]

    async def open(self, request: Request) -> Response:
        """Begin a checkout; `client_reference_id` and `prefilled_email` in the address count as with Stripe."""
        link_id, query = request.path_params["link_id"], dict(request.query_params)
        try:
            session = await self._sandbox.store.run(
                lambda work: payment_links.opened(self._sandbox.context(work), link_id, query)
            )
        except errors.ApiError as error:
            return layout.page(f"<h1>Not possible</h1><p>{html.escape(error.message)}</p>", status=error.status)
        self._sandbox.delivery.wake()
        return RedirectResponse(f"/checkout/{session['id']}", status_code=303)
