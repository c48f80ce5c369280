"""`webhook-gateway`: settings, application, server."""

import asyncio
import contextlib
import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import structlog

from webhook_gateway import app, channel, forwarding, metrics, serving, settings


def main() -> None:
    """Run until SIGTERM or SIGINT (exit 0); exit 2 with a sentence on stderr if the settings cannot be used."""
    if "--help" in sys.argv[1:]:
        print(settings.__doc__)  # noqa: T201 - the help is for stdout
        return
    try:
        configuration = settings.read()
    except settings.SettingsError as error:
        _refuse(str(error))
    _configure_logging()
    # uvicorn raises the signal again after its shutdown; these handlers then end the process with exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        asyncio.run(_serve(configuration))
    except channel.CertificateError as error:
        _refuse(f"BILLING_GRPC_CA_FILE, BILLING_GRPC_CERT_FILE, BILLING_GRPC_KEY_FILE: {error}")


async def _serve(configuration: settings.Settings) -> None:
    counted = metrics.Metrics()
    async with contextlib.AsyncExitStack() as stack:
        forwarder = await stack.enter_async_context(
            forwarding.connect(configuration.grpc_target, configuration.grpc_token, files=configuration.tls)
        )
        if configuration.metrics is not None:
            try:
                await stack.enter_async_context(metrics.told(counted, *configuration.metrics))
            except OSError as error:
                _refuse(f"GATEWAY_METRICS_LISTEN: cannot listen there ({error.strerror})")
        application = app.create_app(configuration.webhook_secrets, forwarder, metrics=counted)
        await serving.build_server(application, configuration.host, configuration.port).serve()


def _refuse(sentence: str) -> NoReturn:
    print(f"webhook-gateway: {sentence}", file=sys.stderr)  # noqa: T201 - for the operator who starts it
    sys.exit(2)


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _configure_logging() -> None:
    """Write a JSON object per line on stdout, for the lines of structlog and of uvicorn."""
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
