"""`python -m services.diffusion`: one worker of the render stage."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from services.diffusion.environment import ENVIRONMENT
from shared.errors import QueueUnavailable
from shared.settings import Settings, SettingsError, help_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until it is told to stop; return its exit status (2: the set-up has to be changed)."""
    parser = argparse.ArgumentParser(
        prog="python -m services.diffusion",
        description="Render the jobs of the render stage: claims them from the queue, stores the pictures.",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        settings = Settings.load()
        if not settings.diffusion.models:
            raise SettingsError(['LLMGA_DIFFUSION__MODELS names no model; for example {"sd15": "/models/sd15"}'])
    except SettingsError as error:
        return _refuse(error)
    os.environ.update(ENVIRONMENT | os.environ)

    from services.diffusion.service import Unfit, run  # seconds of imports, which `--help` does without

    try:
        return asyncio.run(run(settings))
    except (SettingsError, Unfit) as error:
        return _refuse(error)
    except QueueUnavailable as error:  # it may come up later, so whoever supervises this should try again
        sys.stderr.write(f"{error.detail} Check LLMGA_REDIS__URL and that the server runs.\n")
        return 1


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"{error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
