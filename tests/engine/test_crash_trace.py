"""The crash trace tells where a process was, and nothing of files and addresses."""

from __future__ import annotations

import subprocess
import sys

from trifocal.engine.crash_trace import CrashTrace, way

CODE = """
import faulthandler, os, signal, sys, threading, time
faulthandler.enable(int(sys.argv[1]))
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

crash()
"""


def test_a_crash_is_the_way_of_its_thread() -> None:
    trace = CrashTrace.create()
    assert trace.read() == "" and way(trace.read()) == ""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(trace.fileno)], pass_fds=[trace.fileno], capture_output=True, check=False
    )
    assert done.stderr == b""
    assert "0x" in trace.read() and "threading.py" in trace.read()  # which is why it is not for the log
    assert way(trace.read()) == "<string>:7 < <string>:9"
    trace.close()
