"""`python -m gateway`: run the gateway with the settings of the environment."""

import argparse
import sys

from shared.settings import Settings, SettingsError, describe


def main() -> int:
    """Run until SIGTERM or SIGINT; return 0 after draining, 1 if it could not start, 2 for wrong settings."""
    _parser().parse_args()
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # Not before the settings are known to be right: these take most of a second.
    import uvloop

    from gateway.server import StartError, run
    from shared import logs

    logs.configure(settings.log, service="gateway")
    try:
        uvloop.run(run(settings))
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error.cause, SettingsError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    width = max(len(name) for name, _, _ in describe())
    lines = [f"  {name:<{width}}  {text} [{default}]" for name, default, text in describe()]
    return argparse.ArgumentParser(
        prog="python -m gateway",
        description="The public REST server of LLMGA Serve.",
        epilog="settings (environment variables, [default]):\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    sys.exit(main())
