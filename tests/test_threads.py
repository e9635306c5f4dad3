"""Beside other programs the training uses fewer threads."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from faces.speed import threads_at_first, use_free_cores


@pytest.mark.parametrize(
    ("idle", "user_says", "threads"),
    [(98, False, 4), (76, False, 3), (51, False, 2), (3, False, 1), (3, True, 4)],
)
def test_threads_are_as_many_as_free_cores(monkeypatch, capsys, idle, user_says, threads):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(
        psutil, "cpu_times_percent", lambda seconds: SimpleNamespace(idle=idle - 1, iowait=1)
    )
    if user_says:
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
    else:
        monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    threads_at_first.cache_clear()
    try:
        for _ in range(2):
            use_free_cores()
            assert torch.get_num_threads() == threads
            printed = capsys.readouterr().out
            assert (f"with {threads} of 4 threads" in printed) == bool(printed) == (threads < 4)
    finally:
        torch.set_num_threads(before)
        threads_at_first.cache_clear()


@pytest.mark.parametrize(
    ("given", "spin"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
    ],
)
def test_the_users_own_way_of_waiting_stays(given, spin):
    code = "import os, faces; print(os.environ.get('GOMP_SPINCOUNT'))"
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {n: v for n, v in os.environ.items() if n not in ours} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == spin, done.stderr


def test_importing_helpers_sets_it_before_torch_is_there():
    code = "import sys, faces; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
