"""A process that has imported the service's modules; each command runs in a fork of it.

A start of `billing-svc` spends most of its CPU on imports, and the tests run about a hundred commands.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from typing import Any, NoReturn

# What the commands import; the modules that they import themselves come with them.
MODULES = (
    "billing_svc.api.conversions.stripe_events",
    "billing_svc.inbox.replay_events",
    "billing_svc.metering.usage_summary.summarize_usage",
    "billing_svc.platform.database.migrating",
    "billing_svc.programs.server",
    "billing_svc.programs.worker",
    "billing_svc.reconciliation.repair",
)


def main() -> None:
    """Answer each line of standard input, which is a command, with its exit status."""
    for module in MODULES:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _run(**json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(status, file=answers, flush=True)


def _run(arguments: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> NoReturn:
    for number, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["billing-svc", *arguments]
    status: Any = 0
    try:
        runpy.run_module("billing_svc", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - as the interpreter ends with it
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    main()
