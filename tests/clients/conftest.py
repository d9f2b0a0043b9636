"""The gateway's own fixtures: the client is tested against the real thing."""

from tests.gateway.conftest import artifacts as artifacts
from tests.gateway.conftest import gateway as gateway
from tests.gateway.conftest import gateway_settings as gateway_settings
from tests.gateway.conftest import house as house
from tests.gateway.conftest import http as http
from tests.gateway.conftest import settings as settings
