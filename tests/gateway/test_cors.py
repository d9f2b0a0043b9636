"""Pages of the origins that were named may call the API; no others, and none by default."""

import httpx
import pytest

from shared.settings import GatewaySettings, Settings
from tests.gateway.tenants import with_keys

OURS, STRANGER = "https://studio.example", "https://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return the settings of a gateway that asks for keys, as those are that pages call."""
    return with_keys(settings)


async def _preflight(http: httpx.AsyncClient, origin: str) -> httpx.Response:
    return await http.options("/v1/generations", headers={"Origin": origin, **PREFLIGHT})


class TestNamedOrigins:
    @pytest.fixture
    def gateway_settings(self) -> GatewaySettings:
        return GatewaySettings(metrics_port=0, cors_origins=f"http://localhost:3000, {OURS}")

    async def test_page_of_a_named_origin_may_call_and_read_refusals_too(self, http: httpx.AsyncClient) -> None:
        preflight = await _preflight(http, OURS)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == OURS
        assert "POST" in preflight.headers["access-control-allow-methods"]
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert {"authorization", "content-type", "idempotency-key", "prefer"} <= set(allowed.split(", "))
        assert preflight.headers["x-content-type-options"] == "nosniff"
        refused = await http.get("/v1/models", headers={"Origin": OURS})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == OURS
        assert "Retry-After" in refused.headers["access-control-expose-headers"]
        assert refused.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in refused.headers

    async def test_page_of_another_origin_may_not(self, http: httpx.AsyncClient) -> None:
        for origin in (STRANGER, f"{OURS}.evil.example", "null", OURS.upper()):
            for response in (await _preflight(http, origin), await http.get("/livez", headers={"Origin": origin})):
                assert not [name for name in response.headers if name.startswith("access-control")], origin


class TestAnyOrigin:
    @pytest.fixture
    def gateway_settings(self) -> GatewaySettings:
        return GatewaySettings(metrics_port=0, cors_origins="*")

    async def test_star_lets_every_page_call(self, http: httpx.AsyncClient) -> None:
        assert (await _preflight(http, STRANGER)).headers["access-control-allow-origin"] == STRANGER


async def test_by_default_no_page_may_call(http: httpx.AsyncClient) -> None:
    response = await _preflight(http, OURS)
    assert response.status_code == 401
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["studio.example", "https://a/path", "https://", "ftp://a", "https://a b", "null"])
def test_what_is_no_origin_is_refused_as_a_setting(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        GatewaySettings(cors_origins=origin)
