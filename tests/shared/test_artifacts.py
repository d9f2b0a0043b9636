import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared import artifacts
from shared.artifacts import FolderStore, id_of, open_store
from shared.errors import NotFound, StoreUnavailable
from shared.settings import Settings, SettingsError

DATA = b"\x89PNG" + bytes(range(256)) * 50
DAY_S = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path, retention_s=DAY_S)


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def put(store: FolderStore, data: bytes = DATA, tenant: str = "default") -> artifacts.Stored:
    return store.put(data, "image/png", tenant=tenant, metadata={"seed": 7, "prompt": "雪人"})


def file_of(store: FolderStore, stored: artifacts.Stored) -> Path:
    return next(store.root.rglob(stored.id))


def test_what_is_put_can_be_got(store: FolderStore) -> None:
    stored = put(store)
    data, again = store.get(stored.id, tenant="default")
    assert data == DATA
    assert again == stored
    assert (stored.media_type, stored.bytes) == ("image/png", len(DATA))
    assert stored.sha256 == hashlib.sha256(DATA).hexdigest()
    assert stored.metadata == {"seed": 7, "prompt": "雪人"}


def test_the_id_is_made_of_tenant_and_bytes(store: FolderStore) -> None:
    expected = "img_" + hashlib.sha256(b"default\x00" + DATA).hexdigest()[:40]
    assert put(store).id == expected == id_of(DATA, "default")


def test_the_same_bytes_are_kept_once(store: FolderStore) -> None:
    first = put(store)
    inode = file_of(store, first).stat().st_ino
    assert put(store) == first
    assert file_of(store, first).stat().st_ino == inode
    assert files(store.root) == [first.id, first.id + ".json"]


def test_what_is_touched_counts_as_used_now(store: FolderStore) -> None:
    stored = put(store)
    os.utime(file_of(store, stored), (0, 0))
    assert store.touch(stored.id, tenant="default") == stored
    assert store.sweep() == 0


@pytest.mark.parametrize("artifact_id", ["img_" + "0" * 40, "img_", "../x", ""])
def test_what_is_not_there_cannot_be_touched(store: FolderStore, artifact_id: str) -> None:
    with pytest.raises(NotFound):
        store.touch(artifact_id, tenant="default")


def test_another_tenant_s_artifact_cannot_be_touched(store: FolderStore) -> None:
    stored = put(store)
    os.utime(file_of(store, stored), (0, 0))
    with pytest.raises(NotFound):
        store.touch(stored.id, tenant="other")
    assert store.sweep() == 1


def test_the_same_bytes_again_count_as_used_now(store: FolderStore) -> None:
    stored = put(store)
    os.utime(file_of(store, stored), (0, 0))
    put(store)
    assert store.sweep() == 0
    assert store.get(stored.id, tenant="default")[0] == DATA


def test_one_tenants_artifact_is_not_there_for_another(store: FolderStore) -> None:
    mine, theirs = put(store, tenant="a"), put(store, tenant="b")
    assert mine.id != theirs.id
    with pytest.raises(NotFound) as caught:
        store.get(mine.id, tenant="b")
    with pytest.raises(NotFound) as absent:
        store.get("img_" + "0" * 40, tenant="b")
    assert caught.value.detail == absent.value.detail


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "img_",
        "img_" + "0" * 39,
        "img_" + "0" * 41,
        "img_" + "A" * 40,
        "img_" + "g" * 40,
        "IMG_" + "0" * 40,
        "img_" + "0" * 40 + "\n",
        "img_" + "0" * 40 + ".json",
        "img_" + "٠" * 40,
        "../" * 10 + "etc/passwd",
        "/etc/passwd",
        "img_../../../../../../../../../../../etc/pas",
        "img_" + "0" * 35 + "/../x",
        "img_" + "0" * 39 + "\x00",
        ".lock",
        "%2e%2e%2fetc%2fpasswd",
        "x" * 100_000,
    ],
    ids=lambda bad: repr(bad)[:20],
)
def test_what_is_no_id_leads_nowhere(store: FolderStore, bad: str) -> None:
    with pytest.raises(NotFound):
        store.get(bad, tenant="default")


@pytest.mark.parametrize(
    "media_type", ["", "image", "image/png\r\nX-A: b", "IMAGE/PNG", "image/png; a=b", "text/ html"]
)
def test_a_media_type_is_checked_since_it_becomes_a_header(store: FolderStore, media_type: str) -> None:
    with pytest.raises(ValueError, match="media type"):
        store.put(DATA, media_type, tenant="default")


def damage_data(path: Path) -> None:
    path.write_bytes(b"\x00" + path.read_bytes()[1:])


def truncate_data(path: Path) -> None:
    path.write_bytes(b"")


def remove_data(path: Path) -> None:
    path.unlink()


def damage_sidecar(path: Path) -> None:
    path.with_name(path.name + ".json").write_bytes(b"{")


def empty_sidecar(path: Path) -> None:
    path.with_name(path.name + ".json").write_bytes(b"[]")


def rename_sidecar(path: Path) -> None:
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"id": "img_" + "0" * 40}))


def extend_sidecar(path: Path) -> None:
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"surplus": 1}))


def remove_sidecar(path: Path) -> None:
    path.with_name(path.name + ".json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_data,
        truncate_data,
        remove_data,
        damage_sidecar,
        empty_sidecar,
        rename_sidecar,
        extend_sidecar,
        remove_sidecar,
    ],
)
def test_what_was_damaged_is_not_handed_out_and_heals_when_put_again(
    store: FolderStore, damage: Callable[[Path], None]
) -> None:
    stored = put(store)
    damage(file_of(store, stored))
    with pytest.raises(NotFound):
        store.get(stored.id, tenant="default")
    again = put(store)
    assert again.id == stored.id
    assert store.get(stored.id, tenant="default") == (DATA, again)


def test_sweep_deletes_what_is_older_than_the_retention(store: FolderStore) -> None:
    old, new = put(store, b"old"), put(store, b"new")
    os.utime(file_of(store, old), (0, 0))
    assert store.sweep() == 1
    assert files(store.root) == [new.id, new.id + ".json"]
    with pytest.raises(NotFound):
        store.get(old.id, tenant="default")
    assert store.sweep(time.time() + DAY_S + 60) == 1
    assert files(store.root) == []


def test_sweep_keeps_a_moment_before_the_retention_ends(store: FolderStore) -> None:
    stored = put(store)
    os.utime(file_of(store, stored), (1_000, 1_000))
    assert store.sweep(now=1_000 + DAY_S) == 0
    assert store.sweep(now=1_000 + DAY_S + 1) == 1


def test_sweep_removes_what_writers_that_died_left_behind(store: FolderStore) -> None:
    stored = put(store)
    folder = file_of(store, stored).parent
    stale, fresh = folder / ".partial-stale", folder / ".partial-fresh"
    stale.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(stale, (time.time() - 7_200,) * 2)
    lonely = folder / ("img_" + "0" * 40 + ".json")
    lonely.write_bytes(b"{}")
    os.utime(lonely, (0, 0))
    assert store.sweep() == 0
    assert files(folder) == sorted([fresh.name, stored.id, stored.id + ".json"])


def test_sweep_of_an_empty_store_does_nothing(store: FolderStore) -> None:
    assert store.sweep() == 0


def test_sweep_takes_nothing_from_a_writer_that_finds_it_present(store: FolderStore) -> None:
    stop = threading.Event()

    def keep_sweeping() -> None:
        while not stop.is_set():
            store.sweep()

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    try:
        for _ in range(100):
            stored = put(store)
            store.get(stored.id, tenant="default")
            os.utime(file_of(store, stored), (0, 0))
    finally:
        stop.set()
        sweeper.join()


def test_many_writers_of_the_same_bytes_leave_one_artifact(store: FolderStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        stored = list(pool.map(lambda _: put(store), range(64)))
    assert {each.id for each in stored} == {stored[0].id}
    assert files(store.root) == [stored[0].id, stored[0].id + ".json"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from shared.artifacts import FolderStore
from shared.errors import StoreUnavailable
store = FolderStore(Path(sys.argv[1]), retention_s=60)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store.put(bytes(1_000_000), "image/png", tenant="default")
except StoreUnavailable as error:
    assert error.retry_after_s > 0
    sys.exit(7)
"""


@pytest.mark.parametrize("room_bytes", [0, 10, 4_096, 999_999])
def test_a_disk_without_room_leaves_no_partial_file(tmp_path: Path, room_bytes: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(room_bytes)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 7, run.stderr
    names = files(tmp_path)
    # A sidecar may be there, but never without being complete, and nothing can be got.
    assert all(name.endswith(".json") for name in names)
    with pytest.raises(NotFound):
        FolderStore(tmp_path, retention_s=60).get(id_of(bytes(1_000_000), "default"), tenant="default")


def test_a_store_that_is_gone_says_so_and_not_what_the_system_said(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "gone", retention_s=60)
    with pytest.raises(StoreUnavailable) as caught:
        put(store)
    assert caught.value.detail == "The picture could not be stored."
    assert isinstance(caught.value.__cause__, OSError)


def test_nothing_is_seen_under_its_name_before_it_is_on_disk(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def watched_replace(source: str, target: Path) -> None:
        assert synced[-1] == source
        assert Path(source).parent == target.parent
        replace(source, target)
        synced.append(str(target))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    stored = put(store)
    path = file_of(store, stored)
    order = [name for name in synced if Path(name).suffix != "" or "img_" in name or name == str(path.parent)]
    assert order[-2:] == [str(path), str(path.parent)]  # the bytes come last, then their folder
    assert order.index(str(path) + ".json") < order.index(str(path))
    assert str(store.root) in synced  # the new folder's own entry


def test_a_crash_before_the_rename_leaves_nothing_under_the_name(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: Path) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreUnavailable):
        put(store)
    assert files(store.root) == []


def test_files_are_the_owners_alone(store: FolderStore) -> None:
    assert file_of(store, put(store)).stat().st_mode & 0o077 == 0


def settings_of(tmp_path: Path, **environ: str) -> Settings:
    return Settings.load({"LLMGA_HOME": str(tmp_path / "home")} | environ)


def test_without_a_url_the_store_is_in_the_home_folder(tmp_path: Path) -> None:
    stored = open_store(settings_of(tmp_path)).put(DATA, "image/png", tenant="default")
    assert list((tmp_path / "home" / "artifacts").rglob(stored.id))


@pytest.mark.parametrize("form", ["{}/a b", "file://{}/a%20b", "file://localhost{}/a%20b", "FILE://{}/a b"])
def test_a_path_and_a_file_url_name_the_same_folder(tmp_path: Path, form: str) -> None:
    store = open_store(settings_of(tmp_path, LLMGA_ARTIFACTS__URL=form.format(tmp_path)))
    store.put(DATA, "image/png", tenant="default")
    assert (tmp_path / "a b").is_dir()


@pytest.mark.parametrize(
    "url",
    ["s3://key:hunter2@bucket/x", "http://h/", "redis://h", "file://host/share", "file://relative", "file:///a?b"],
)
def test_urls_of_other_kinds_are_refused_without_repeating_a_secret(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="LLMGA_ARTIFACTS__URL: ") as caught:
        open_store(settings_of(tmp_path, LLMGA_ARTIFACTS__URL=url))
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        open_store(settings_of(tmp_path, LLMGA_ARTIFACTS__URL=str(tmp_path / "file")))


def test_metadata_must_be_json(store: FolderStore) -> None:
    odd: dict[str, Any] = {"a": object()}
    with pytest.raises(TypeError):
        store.put(DATA, "image/png", tenant="default", metadata=odd)
    assert files(store.root) == []


def test_a_state_is_the_last_one_saved_until_it_is_dropped(store: FolderStore) -> None:
    assert store.load_state("job.0") is None
    store.save_state("job.0", b"one")
    store.save_state("job.0", b"two")
    store.save_state("job.1", b"other")
    assert (store.load_state("job.0"), store.load_state("job.1")) == (b"two", b"other")
    store.drop_state("job.0")
    store.drop_state("job.0")
    assert store.load_state("job.0") is None
    assert files(store.root) == ["job.1"]


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "/etc/passwd", "a" * 129, "a\n", "\x00"])
def test_a_state_s_name_leads_nowhere_else(store: FolderStore, name: str) -> None:
    for use in (store.load_state, store.drop_state, lambda name: store.save_state(name, b"")):
        with pytest.raises(ValueError, match="not a name"):
            use(name)


def test_sweep_deletes_states_that_nobody_came_back_for(store: FolderStore) -> None:
    store.save_state("old", b"1")
    store.save_state("new", b"1")
    os.utime(store.root / "states" / "old", (0, time.time() - DAY_S - 60))
    assert store.sweep() == 0  # pictures
    assert files(store.root) == ["new"]


def test_a_state_that_cannot_be_written_leaves_the_last_one(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save_state("job.0", b"one")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreUnavailable):
        store.save_state("job.0", b"two")
    assert store.load_state("job.0") == b"one"
    assert files(store.root) == ["job.0"]
