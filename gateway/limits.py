"""A tenant's limits in HTTP: `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11).

Three policies, each told only where it binds: `requests` (a token bucket: `q` at once, all of them back after `w`
seconds), `jobs` (under way at the same time) and `units` (cost units of this day, UTC).
"""

import math

from shared.contracts.limits import Left, Limits, Standing

DAY_S = 86_400
COST_UNITS = "llmga-cost-units"  # the draft has no name for such a unit


def limit_headers(limits: Limits, standing: Standing) -> dict[str, str]:
    """Return the headers that tell a tenant its limits and what is left of them."""
    policies, states = [], []

    def tell(name: str, policy: str, left: Left) -> None:
        policies.append(f'"{name}";{policy}')
        states.append(f'"{name}";r={left.amount}' + ("" if left.full_in_s is None else f";t={left.full_in_s}"))

    if standing.requests is not None:
        window_s = math.ceil(limits.burst * 60 / limits.requests_per_minute)
        tell("requests", f"q={limits.burst};w={window_s}", standing.requests)
    if standing.jobs is not None:
        tell("jobs", f'q={limits.max_jobs};qu="concurrent-requests"', standing.jobs)
    if standing.units is not None:
        tell("units", f'q={math.floor(limits.units_per_day)};w={DAY_S};qu="{COST_UNITS}"', standing.units)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}
