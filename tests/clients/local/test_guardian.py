"""A launcher that is killed leaves no process behind."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

from clients.local.guardian import end_groups
from tests.processes import LIMIT_S, is_running, until

# A launcher in small: a child that starts a grandchild and ignores SIGTERM, watched by a guardian.
LAUNCHER = """
import subprocess, sys, time
from clients.local.home import Home
from clients.local.guardian import Guardian
from pathlib import Path
home = Home.open(Path(sys.argv[1]))
guardian = Guardian(home.lock_fd)
child = subprocess.Popen(
    ["sh", "-c", "trap '' TERM; sleep 1000 & echo $! > grandchild; wait; sleep 1000"],
    cwd=sys.argv[1], start_new_session=True)
guardian.watch(child.pid)
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_children_and_grandchildren_of_a_killed_launcher_are_ended(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    with launcher.stdout:
        child = int(launcher.stdout.readline())
        until((tmp_path / "grandchild").exists)
        until(lambda: bool((tmp_path / "grandchild").read_text().strip()))
        grandchild = int((tmp_path / "grandchild").read_text())
        assert is_running(child)
        assert is_running(grandchild)
        launcher.kill()
        launcher.wait()
    until(lambda: not is_running(child) and not is_running(grandchild))


def test_a_group_that_ends_when_asked_is_not_killed() -> None:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    reaper = threading.Thread(target=child.wait)  # as init reaps orphans
    reaper.start()
    end_groups([child.pid], grace_s=LIMIT_S)
    reaper.join()
    assert child.returncode == -signal.SIGTERM
