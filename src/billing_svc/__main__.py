"""`python -m billing_svc`, and the installed command `billing-svc`."""

from billing_svc.programs import cli


def main() -> None:
    """Run the command that the arguments name; what goes wrong is one sentence on stderr and the exit code."""
    with cli.told():
        cli.app()


if __name__ == "__main__":
    main()
