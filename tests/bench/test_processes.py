"""CPU and memory as /proc tells them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from bench.rig.processes import cpu_seconds, cpu_ticks, family, resident_mib


def test_cpu_is_the_processs_own_and_that_of_the_children_it_waited_for() -> None:
    """Fields 14 to 17 of proc(5): 100 user, 20 system, 3 and 4 of dead children. The name may hold anything."""
    stat = "4242 (a) b (c)) S 1 4242 4242 0 -1 4194560 100 200 0 0 100 20 3 4 20 0 1 0 1000 10000 500"
    assert cpu_ticks(stat) == 127


def test_cpu_and_memory_count_the_children() -> None:
    program = (
        "import subprocess, sys\n"
        "busy = 'sum(range(3 * 10 ** 6)); print(flush=True); input()'\n"
        "child = subprocess.Popen([sys.executable, '-c', busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); input(); child.communicate(b'\\n')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert set(family(parent.pid)) == {parent.pid, child}
        times = [psutil.Process(pid).cpu_times() for pid in (parent.pid, child)]
        assert cpu_seconds(parent.pid) == pytest.approx(sum(t.user + t.system for t in times), abs=0.05)
        each = [psutil.Process(pid).memory_info().rss / 2**20 for pid in (parent.pid, child)]
        assert resident_mib(parent.pid) == pytest.approx(sum(each), rel=0.1)
    finally:
        parent.communicate(b"\n")


def test_cpu_of_this_process_agrees_with_its_own_clock() -> None:
    assert cpu_seconds(os.getpid()) >= time.process_time() - 0.05
