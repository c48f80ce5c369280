"""`make bench`: all measurements, in one run."""

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import results, rows, stand
from benchmarks.rounds import Drivers, Meter

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    only: Annotated[str, typer.Option(help=f"Only these groups, separated by commas: {', '.join(rows.GROUPS)}.")] = "",
    stored: Annotated[
        int, typer.Option(min=1, help="Stored events; such a database is compared with an empty one.")
    ] = 200_000,
    calls: Annotated[int, typer.Option(min=1_000, help="Calls before memory is measured.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds for each subject in a round.")] = 2.0,
    drivers: Annotated[int, typer.Option(min=1, help="Processes that make the calls.")] = 1,
) -> None:
    """Measure the service against a bare echo, COPY and hand-written code. Takes some minutes."""
    if context.invoked_subcommand:
        return
    groups = only.split(",") if only else list(rows.GROUPS)
    if unknown := set(groups) - set(rows.GROUPS):
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}")
    began = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - began:4.0f} s] {line}", err=True)

    with stand.stand(say) as stood, Drivers(drivers, stood.folder) as driving:
        meter = Meter(driving, stood.postgres_cpu_seconds, say, rounds, seconds)
        plan = rows.Plan(stood, meter, stored=stored, calls=calls)
        found: list[results.Row] = []
        for name in groups:
            say(f"-- {name}")
            found += rows.GROUPS[name](plan)
        plan.close()
        settings: dict[str, object] = {
            "stored": stored,
            "calls": calls,
            "rounds": rounds,
            "seconds": seconds,
            "drivers": drivers,
        }
        path = results.save(found, stood.postgres_version(), settings)
    results.print_table(found)
    typer.echo(f"{stored:,} stored events; kept in {path.relative_to(Path.cwd())}")


@app.command()
def compare(before: Path, after: Path) -> None:
    """Show the files of two runs side by side."""
    results.compare(before, after)


if __name__ == "__main__":
    app()
