"""Child processes that never outlive whoever started them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from legit_embedding.testing.processes import GuardedProcess
from tests.waiting import until

PATIENCE_S = 30
PARENT_AND_CHILD = "sleep 1000 & echo $!; wait"


def alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def grandchild_of(process):
    until(lambda: process.log.endswith("\n"))
    return int(process.log)


@pytest.fixture
def process(tmp_path):
    own = GuardedProcess(["/bin/sh", "-c", PARENT_AND_CHILD], folder=tmp_path, log_name="log")
    yield own
    own.kill()


def test_what_a_child_has_started_is_killed_with_it(process):
    grandchild = grandchild_of(process)
    assert alive(grandchild)
    process.kill()
    until(lambda: not alive(grandchild))
    process.kill()


def test_children_and_their_folder_go_when_their_starter_is_killed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    code = (
        "import pathlib, time\n"
        "from legit_embedding.testing.processes import GuardedProcess\n"
        f"process = GuardedProcess(['/bin/sh', '-c', {PARENT_AND_CHILD!r}],"
        f" folder=pathlib.Path({str(folder)!r}), log_name='log')\n"
        "while not process.log.endswith('\\n'): time.sleep(0.01)\n"
        "print(process.pid, process.log, flush=True)\n"
        "time.sleep(1000)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with starter:
        child, grandchild = map(int, starter.stdout.readline().split())
        assert (alive(child), alive(grandchild)) == (True, True)
        os.kill(starter.pid, signal.SIGKILL)
    until(lambda: not (alive(child) or alive(grandchild) or folder.exists()))
