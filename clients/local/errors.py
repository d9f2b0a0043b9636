"""Why the launcher does not start, or gives up."""


class LaunchError(Exception):
    """The system cannot be started; `next_step` says what a person can do."""

    def __init__(self, detail: str, next_step: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.next_step = next_step
