"""`stripe-sandbox`, or `python -m stripe_sandbox`: serves; `advance` moves the clock of a running sandbox."""

import pathlib
import sys
from typing import Annotated

import typer
import uvicorn

from stripe_sandbox import app, settings
from stripe_sandbox import state as state_file
from stripe_sandbox.control import control, faults
from stripe_sandbox.time import advancing

SHUTDOWN_SECONDS = 3
"""How long running requests may take to finish after SIGTERM."""

DELAYS = settings.Delays()

commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_Port = Annotated[int, typer.Option(min=1, max=65535)]


@commands.callback(invoke_without_command=True)
def serve(  # noqa: PLR0913, PLR0917 - one for each thing that it can be told
    context: typer.Context,
    state: Annotated[pathlib.Path | None, typer.Option(help="The file of the state; created if it is missing.")] = None,
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; there is no real authentication. Change it only in containers."),
    ] = settings.LOOPBACK,
    port: _Port = settings.PORT,
    webhook_url: Annotated[
        str | None, typer.Option(help="The URL to send events to; without it, none are sent.")
    ] = None,
    webhook_secret: Annotated[str | None, typer.Option(envvar="STRIPE_SANDBOX_WEBHOOK_SECRET")] = None,
    clock_file: Annotated[
        pathlib.Path | None, typer.Option(help="The file in which other programs read how far the clock was moved.")
    ] = None,
    faults_file: Annotated[
        pathlib.Path | None,
        typer.Option("--faults", help="A file with a JSON list of faults, in force from the start."),
    ] = None,
    draft_seconds: Annotated[
        int, typer.Option(min=60, max=3 * 24 * 3600, help="How long an invoice stays a draft.")
    ] = DELAYS.drafts,
    meter_lag: Annotated[
        int, typer.Option(min=0, help="The seconds until usage that a meter accepted is counted.")
    ] = DELAYS.meters,
    search_lag: Annotated[
        int, typer.Option(min=0, max=state_file.VERSIONS_SECONDS, help="The seconds until a search finds a write.")
    ] = DELAYS.search,
) -> None:
    """Serve a stand-in for Stripe on this machine, with checkout pages and signed webhooks."""
    if context.invoked_subcommand is not None:
        return
    if state is None:
        raise typer.BadParameter("name the file of the state", param_hint="--state")
    try:
        rules = tuple(faults.read(faults_file)) if faults_file else ()
        delays = settings.Delays(draft_seconds, meter_lag, search_lag)
        built = app.create_app(settings.Settings(port, state, webhook_url, webhook_secret, clock_file, rules, delays))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    uvicorn.run(
        built,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


@commands.command()
def advance(
    duration: Annotated[str, typer.Argument(help="How far: 90m, 12h, 35d, 1d12h.")],
    port: _Port = settings.PORT,
    pause: Annotated[
        float,
        typer.Option(
            min=0,
            max=control.PAUSE_SECONDS_MAX,
            help="Seconds of real time after each step in which something happened.",
        ),
    ] = control.PAUSE_SECONDS,
) -> None:
    """Move the clock of the sandbox that runs on this machine, from one due change to the next."""
    try:
        seconds = advancing.read_duration(duration)
        advancing.advance(f"http://{settings.LOOPBACK}:{port}", seconds, pause, typer.echo)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except advancing.Failed as error:
        typer.echo(f"stripe-sandbox: {error}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the program."""
    commands()


if __name__ == "__main__":
    main()
