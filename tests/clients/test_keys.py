"""`llmga keys`: the file is edited in one step, and the secret is shown once."""

import asyncio
import json
import re
import stat
import threading
from pathlib import Path

import pytest

from clients import cli
from clients.client import API_KEY_VARIABLE, Client
from clients.keys import KeysError, KeysFile
from gateway.callers import KeyHolders
from shared.contracts.keys import Key, Keys, Tenant, digest_of, split_token
from shared.contracts.limits import Limits
from shared.settings import AuthSettings, Settings
from tests.gateway.conftest import House


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    """Return a file of keys that is not there yet, in a folder that is not there either."""
    return KeysFile(tmp_path / "home" / "keys.json")


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["keys", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_key_is_printed_once_and_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    status, out, err = _run(capsys, "--home", str(tmp_path), "create", "alice", "--note", "a laptop")
    assert status == cli.OK
    token = out.rstrip("\n")
    parts = split_token(token)
    assert parts is not None
    assert parts[1] not in path.read_text() + err
    (key,) = KeysFile(path).read().keys
    assert (key.id, key.tenant, key.note, key.sha256) == (parts[0], "alice", "a laptop", digest_of(parts[1]))
    holders = KeyHolders(path, Limits())
    holders.load()
    assert holders.identify(f"Bearer {token}").tenant == "alice"


def test_secrets_are_256_bits_and_never_the_same(file: KeysFile) -> None:
    tokens = [file.create("alice")[1] for _ in range(20)]
    secrets = {parts[1] for token in tokens if (parts := split_token(token))}
    assert len(secrets) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", secret) for secret in secrets)  # 43 letters of 6 bits


def test_list_shows_good_and_revoked_keys_without_their_hashes(
    file: KeysFile, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, lost = [file.create(tenant)[0] for tenant in ("alice", "bob")]
    options = ("--keys-file", str(file.path))
    assert _run(capsys, "revoke", lost.id, *options)[0] == cli.OK
    status, out, _ = _run(capsys, "list", *options)
    assert status == cli.OK
    rows = [line.split() for line in out.splitlines()]
    assert [(row[0], row[1], row[3]) for row in rows] == [(kept.id, "alice", "good"), (lost.id, "bob", "revoked")]
    _, out, _ = _run(capsys, "list", "--json", *options)
    assert [(key["id"], key["revoked"] is None) for key in json.loads(out)] == [(kept.id, True), (lost.id, False)]
    assert kept.sha256 not in out


def test_revoking_again_keeps_the_time_of_the_first(file: KeysFile) -> None:
    key, _ = file.create("alice")
    first = file.revoke(key.id)
    assert first.revoked is not None
    assert file.revoke(key.id) == first


def test_file_is_for_its_owner_alone(file: KeysFile) -> None:
    file.create("alice")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.path.chmod(0o644)
    file.create("alice")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_environment_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMGA_AUTH__KEYS_FILE", str(tmp_path / "mine.json"))
    assert _run(capsys, "create", "alice")[0] == cli.OK
    assert len(KeysFile(tmp_path / "mine.json").read().keys) == 1


def test_limits_that_were_written_by_hand_survive_an_edit(file: KeysFile) -> None:
    own = {"alice": Tenant(limits=Limits(max_jobs=Limits().max_jobs))}  # the default of today, kept whatever it becomes
    file.path.parent.mkdir()
    file.path.write_text(Keys(tenants=own).model_dump_json(exclude_unset=True))
    file.create("alice")
    assert file.read().tenants["alice"].limits.model_fields_set == {"max_jobs"}


async def test_keys_that_are_made_at_once_are_all_there_and_readers_see_whole_files(file: KeysFile) -> None:
    file.create("alice")
    is_over = threading.Event()
    seen = []

    def read() -> None:
        while not is_over.is_set():
            seen.append(len(file.read().keys))  # raises for half a file

    reading = asyncio.create_task(asyncio.to_thread(read))
    made = await asyncio.gather(*(asyncio.to_thread(file.create, f"tenant-{number}") for number in range(16)))
    is_over.set()
    await reading
    assert {key.id for key, _ in made} <= {key.id for key in file.read().keys}
    assert len(file.read().keys) == 17
    assert seen == sorted(seen)
    assert {path.name for path in file.path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


@pytest.mark.parametrize("tenant", ["", "two words", "a:b", "a/b", "-a", "a" * 65, "\n"])
def test_impossible_names_are_refused_and_nothing_is_written(
    file: KeysFile, capsys: pytest.CaptureFixture[str], tenant: str
) -> None:
    status, out, err = _run(capsys, "create", "--keys-file", str(file.path), "--", tenant)
    assert (status, out) == (cli.FAILED, "")
    assert "not usable" in err
    assert not file.path.exists()


class TestGatewayThatAsksForKeys:
    @pytest.fixture
    def key(self, tmp_path: Path) -> str:
        return KeysFile(tmp_path / "keys.json").create("alice")[1]

    @pytest.fixture
    def settings(self, settings: Settings, key: str) -> Settings:
        return settings.model_copy(update={"auth": AuthSettings()})

    async def test_command_sends_the_key_of_the_environment_and_says_so_where_there_is_none(
        self,
        house: House,
        key: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        command = ["generate", "a red house", "--url", house.url, "--output", str(tmp_path / "h.png")]
        monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
        assert await asyncio.to_thread(cli.main, command) == cli.FAILED
        assert API_KEY_VARIABLE in capsys.readouterr().err
        monkeypatch.setenv(API_KEY_VARIABLE, key)
        assert await asyncio.to_thread(cli.main, command) == cli.OK
        assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")

    async def test_key_that_is_given_wins_over_that_of_the_environment(
        self, house: House, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(API_KEY_VARIABLE, "llmga_nonsense")
        with Client(house.url, api_key=key) as client:
            assert await asyncio.to_thread(client.models)


def test_unknown_key_is_refused(file: KeysFile) -> None:
    file.create("alice")
    with pytest.raises(KeysError, match="there is no key"):
        file.revoke("000000000000")


@pytest.mark.parametrize("text", ["", "{", '{"keys": [1]}', '{"kees": []}'])
def test_damaged_file_is_refused_and_left_as_it_is(
    file: KeysFile, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text)
    status, _, err = _run(capsys, "create", "alice", "--keys-file", str(file.path))
    assert status == cli.FAILED
    assert "is no file of API keys" in err
    assert file.path.read_text() == text


def test_two_keys_of_one_id_are_no_file_of_keys() -> None:
    key = Key(id="0" * 12, tenant="a", sha256="0" * 64, created=0)
    with pytest.raises(ValueError, match="same id"):
        Keys(keys=[key, key])
