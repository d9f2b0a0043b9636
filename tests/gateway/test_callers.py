"""Who holds a key is told from who does not, and the file may change or be damaged meanwhile."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from clients.keys import KeysFile
from gateway import callers
from gateway.callers import KeyHolders
from gateway.tasks import background
from shared.contracts import Lane
from shared.contracts.keys import MAX_FILE_BYTES, Key, Keys, Tenant, digest_of, token_of
from shared.contracts.limits import Limits
from shared.errors import Unauthenticated
from shared.settings import SettingsError
from tests.gateway.conftest import until

SECRET = "A" * 43
KEY_ID = "0123456789ab"
KEY = Key(id=KEY_ID, tenant="alice", sha256=digest_of(SECRET), created=0)
TOKEN = token_of(KEY_ID, SECRET)
DEFAULTS = Limits(requests_per_minute=10, burst=3, max_jobs=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file with one key."""
    path = tmp_path / "keys.json"
    path.write_text(Keys(keys=[KEY]).model_dump_json())
    return path


def loaded(path: Path) -> KeyHolders:
    holders = KeyHolders(path, DEFAULTS)
    holders.load()
    return holders


def is_known(holders: KeyHolders, token: str = TOKEN) -> bool:
    try:
        holders.identify(f"Bearer {token}")
    except Unauthenticated:
        return False
    return True


@asynccontextmanager
async def tended(path: Path) -> AsyncIterator[KeyHolders]:
    holders = loaded(path)
    async with background(holders.tend()):
        yield holders


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN} "])
def test_holder_of_a_key_is_its_tenant_with_the_limits_of_the_settings(path: Path, authorization: str) -> None:
    caller = loaded(path).identify(authorization)
    assert (caller.tenant, caller.key_id, caller.limits, caller.lane) == ("alice", KEY_ID, DEFAULTS, None)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer llmga_",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer x{TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer {TOKEN[:-1]}B",
        f"Bearer {token_of('ba9876543210', SECRET)}",
        f"Bearer {TOKEN.upper()}",
        "Bearer " + "\xff" * 60,
        "Bearer " + "A" * 100_000,
    ],
)
def test_what_is_not_exactly_a_key_of_the_file_is_refused(path: Path, authorization: str | None) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        loaded(path).identify(authorization)
    assert SECRET not in refusal.value.detail


def test_secret_of_one_key_does_not_go_with_the_id_of_another(path: Path) -> None:
    other = Key(id="ba9876543210", tenant="bob", sha256=digest_of("B" * 43), created=0)
    path.write_text(Keys(keys=[KEY, other]).model_dump_json())
    holders = loaded(path)
    assert is_known(holders, token_of(other.id, "B" * 43))
    assert not is_known(holders, token_of(other.id, SECRET))


def test_limits_of_a_tenant_are_its_own_where_it_has_them_and_the_settings_elsewhere(path: Path) -> None:
    own = Tenant(limits=Limits(max_jobs=100), lane=Lane.BATCH)  # as much as the default of the contract: still its own
    path.write_text(Keys(keys=[KEY], tenants={"alice": own}).model_dump_json(exclude_unset=True))
    caller = loaded(path).identify(f"Bearer {TOKEN}")
    assert caller.limits == Limits(requests_per_minute=10, burst=3, max_jobs=100)
    assert caller.lane is Lane.BATCH


def test_each_request_has_a_caller_of_its_own(path: Path) -> None:
    holders = loaded(path)
    assert holders.identify(f"Bearer {TOKEN}") is not holders.identify(f"Bearer {TOKEN}")


async def test_file_that_comes_later_lets_its_holders_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    async with tended(path) as holders:
        assert not is_known(holders)
        _, token = KeysFile(path).create("alice")
        await until(lambda: is_known(holders, token))


async def test_revoked_key_is_refused_and_others_are_not(path: Path) -> None:
    assert callers.LOOK_S < 0.5  # a look takes moments, so that a second is never over
    async with tended(path) as holders:
        _, other = KeysFile(path).create("alice")
        await until(lambda: is_known(holders, other))
        KeysFile(path).revoke(KEY_ID)
        await until(lambda: not is_known(holders))
        assert is_known(holders, other)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"keys": 1}',
        '{"kees": []}',
        Keys(keys=[KEY]).model_dump_json().replace(digest_of(SECRET), "0"),
        '{"keys": [' + KEY.model_dump_json() + "," + KEY.model_dump_json() + "]}",
        None,
    ],
)
async def test_damaged_file_changes_nothing_until_it_is_whole_again(
    path: Path, caplog: pytest.LogCaptureFixture, damage: str | None
) -> None:
    async with tended(path) as holders:
        with caplog.at_level(logging.ERROR, "llmga.gateway"):
            if damage is None:
                path.unlink()
            else:
                path.write_text(damage)
            await until(lambda: "cannot be used" in caplog.text)
        assert is_known(holders)
        path.write_text(Keys().model_dump_json())
        await until(lambda: not is_known(holders))


@pytest.mark.parametrize("damage", ["{", '{"keys": [{"id": "x"}]}', " " * (MAX_FILE_BYTES + 1)])
def test_file_that_is_damaged_at_the_start_stops_it_with_what_is_wrong(path: Path, damage: str) -> None:
    path.write_text(damage)
    with pytest.raises(SettingsError, match="LLMGA_AUTH__KEYS_FILE") as refusal:
        loaded(path)
    assert str(path) in refusal.value.problems[0]
