"""`webhook-gateway`: settings, application, server."""

import asyncio
import logging
import signal
import sys
from types import FrameType

import structlog

from webhook_gateway import app, forwarding, serving, settings


def main() -> None:
    """Run until SIGTERM or SIGINT (exit 0); exit 2 with one sentence if the settings are not usable."""
    try:
        configuration = settings.read()
    except settings.SettingsError as error:
        print(f"webhook-gateway: {error}", file=sys.stderr)  # noqa: T201 - for whoever starts it
        sys.exit(2)
    _configure_logging()
    # uvicorn raises the signal anew once it has shut down; that ends the process here, in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    asyncio.run(_serve(configuration))


async def _serve(configuration: settings.Settings) -> None:
    async with forwarding.connect(configuration.grpc_target, configuration.grpc_token) as forwarder:
        application = app.create_app(configuration.webhook_secrets, forwarder)
        await serving.build_server(application, configuration.host, configuration.port).serve()


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _configure_logging() -> None:
    """One JSON object a line on stdout, from structlog and from uvicorn alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


if __name__ == "__main__":
    main()
