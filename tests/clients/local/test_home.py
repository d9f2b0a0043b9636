import os
import stat
from pathlib import Path

import pytest

from clients.local.errors import LaunchError
from clients.local.home import Home, Run, read_run


def run_record() -> Run:
    return Run(url="http://h:1", redis_url="redis://r", launcher_pid=os.getpid(), started_at=0, models="m", services={})


def test_a_second_launcher_on_one_home_is_refused_with_the_owner(tmp_path: Path) -> None:
    with Home.open(tmp_path), pytest.raises(LaunchError, match=rf"in use by process {os.getpid()}"):
        Home.open(tmp_path)


def test_a_home_is_free_again_when_its_launcher_ended(tmp_path: Path) -> None:
    Home.open(tmp_path).close()
    Home.open(tmp_path).close()


def test_run_file_counts_only_while_its_launcher_lives(tmp_path: Path) -> None:
    with Home.open(tmp_path) as home:
        home.write_run(run_record())
        assert read_run(tmp_path) == run_record()
        kept = (tmp_path / "run.json").read_bytes()
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_bytes(kept)  # as a killed launcher would leave it
    assert read_run(tmp_path) is None


def test_run_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with Home.open(tmp_path) as home:
        home.write_run(run_record())
        assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o600


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot be used"):
        Home.open(tmp_path / "file")


def test_logs_of_earlier_runs_are_kept_aside(tmp_path: Path) -> None:
    with Home.open(tmp_path) as home:
        for text in ("first", "second", "third"):
            home.fresh_log("mllm").write_text(text)
        assert home.fresh_log("mllm").exists() is False
        assert (home.logs / "mllm.log.1").read_text() == "third"
        assert (home.logs / "mllm.log.3").read_text() == "first"
