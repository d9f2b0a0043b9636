"""The job queue in Redis (or Valkey): what carries a request from the gateway through both services.

Every transition is one Lua script (`lua/`, typed in `scripts`) that checks, changes and tells in one step, by
the server's clock. There are no locks and nothing is remembered outside the server, so any process may die at
any moment.
"""

from shared.jobs.claim import Claim
from shared.jobs.consumer import Consumer
from shared.jobs.follower import EventFollower
from shared.jobs.leases import JobCanceled, LeaseKeeper, LeaseLost
from shared.jobs.placement import Placement
from shared.jobs.queue import DEFAULT_TENANT, JobQueue
from shared.jobs.server import UnfitServer, check_server, connect
from shared.jobs.submission import Submitted

__all__ = [
    "DEFAULT_TENANT",
    "Claim",
    "Consumer",
    "EventFollower",
    "JobCanceled",
    "JobQueue",
    "LeaseKeeper",
    "LeaseLost",
    "Placement",
    "Submitted",
    "UnfitServer",
    "check_server",
    "connect",
]
