"""What can go wrong between a client and a server.

ClientError
├── ServerProblem: the server answered with a problem (RFC 9457)
├── Unreachable: no server, or it stopped answering
└── UnexpectedAnswer: something answered that is not LLMGA Serve
"""

from shared.contracts import Problem


class ClientError(Exception):
    """Base of everything that the client raises on its own account."""


class ServerProblem(ClientError):
    """The server refused; `problem` says why and what to do."""

    def __init__(self, problem: Problem, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem
        self.retry_after_s = retry_after_s


class Unreachable(ClientError):
    """Nothing answers at the URL, or the answer did not come in time."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no answer from {url}")
        self.url = url


class UnexpectedAnswer(ClientError):
    """The answer is none of this API's; `status` is its HTTP status."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"the answer from {url} (HTTP {status}) is not one of LLMGA Serve")
        self.url = url
        self.status = status
