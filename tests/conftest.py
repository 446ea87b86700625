"""One torch thread a process, set before torch is imported: tests and their servers share few cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
