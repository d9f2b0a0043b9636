"""The yardstick of `benchmarks.plumbing`: a FastAPI route that does nothing, served as the gateway is.

`python -m benchmarks.plumbing_bare PORT`
"""

import sys
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from gateway.server import uvicorn_config
from shared.settings import GatewaySettings

app = FastAPI()


@app.get("/livez")
async def livez() -> dict[str, str]:
    """Say that the server has started."""
    return {"status": "alive"}


@app.post("/v1/generations")
async def bare(body: dict[str, Any]) -> dict[str, Any]:
    """Return what was sent."""
    return body


if __name__ == "__main__":
    uvloop.run(uvicorn.Server(uvicorn_config(app, GatewaySettings(port=int(sys.argv[1])))).serve())
