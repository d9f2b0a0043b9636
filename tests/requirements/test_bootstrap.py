"""The bootstrap repairs what an interruption left, and trusts no environment of another folder."""

import importlib.util
import re
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "requirements" / "bootstrap.py"


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(site: Path, name: str, *, files: list[str], missing: str = "") -> Path:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for file in files:
        if file != missing:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).touch()
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return info


def test_a_package_with_a_missing_file_is_installed_again(bootstrap: ModuleType, tmp_path: Path) -> None:
    whole = install(tmp_path, "whole", files=["whole/a.py"])
    half = install(tmp_path, "half", files=["half/a.py", "half/b.py"], missing="half/b.py")
    unrecorded = install(tmp_path, "unrecorded", files=["unrecorded/a.py"])
    (unrecorded / "RECORD").unlink()
    (tmp_path / "~alf").mkdir()
    assert sorted(bootstrap.drop_damaged(tmp_path)) == ["half", "unrecorded"]
    assert whole.exists()
    assert not half.exists()
    assert not (tmp_path / "~alf").exists()


def test_a_missing_compiled_file_is_no_damage(bootstrap: ModuleType, tmp_path: Path) -> None:
    files = ["whole/a.py", "whole/__pycache__/a.cpython-311.pyc"]
    install(tmp_path, "whole", files=files, missing=files[1])
    assert bootstrap.drop_damaged(tmp_path) == []


def test_an_environment_that_was_moved_here_is_not_sound(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "first", with_pip=True)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "first")
    assert bootstrap.is_sound()
    (tmp_path / "first").rename(tmp_path / "second")
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "second")
    assert not bootstrap.is_sound()


def test_an_environment_without_pip_is_not_sound(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "bare")
    assert not bootstrap.is_sound()


def test_an_old_python_is_refused_with_what_to_do(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (sys.version_info[0], sys.version_info[1] + 1))
    assert bootstrap.main() == 1
    error = capsys.readouterr().err
    assert "needs Python 3.11" in error
    assert "make PYTHON=" in error


def test_every_requirement_is_pinned_and_torch_comes_before_them(bootstrap: ModuleType) -> None:
    pins = bootstrap.pins()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert not {"torch", "llmga-serve"} & set(names)
