"""`python -m stripe_sandbox`."""

import pathlib
from typing import Annotated

import typer
import uvicorn

from stripe_sandbox import app, settings

SHUTDOWN_SECONDS = 3
"""How long requests under way may take to finish after SIGTERM."""


def serve(
    state: Annotated[pathlib.Path, typer.Option(help="The file that holds everything; made if it is missing.")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 12111,
    webhook_url: Annotated[str | None, typer.Option(help="Where events are sent; left out, nowhere.")] = None,
    webhook_secret: Annotated[str | None, typer.Option(envvar="STRIPE_SANDBOX_WEBHOOK_SECRET")] = None,
) -> None:
    """Serve a stand-in for Stripe on this machine, with checkout pages and signed webhooks."""
    try:
        built = app.create_app(settings.Settings(port, state, webhook_url, webhook_secret))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    uvicorn.run(
        built,
        host=settings.LOOPBACK,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    typer.run(serve)
