"""Beside other programs the training uses fewer threads, and as many as before when they end."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch
from small_training import prepare, train

from faces import speed
from faces.speed import FreeCores


class Machine:
    """Four cores, of which others keep some busy; time passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = self.idle = self.own = 0.0
        self.n_busy = 0
        monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(idle=self.idle, iowait=0))
        own = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=self.own, system=0.0))
        monkeypatch.setattr(psutil, "Process", lambda: own)
        clock = SimpleNamespace(sleep=self.wait, monotonic=lambda: self.seconds)
        monkeypatch.setattr(speed, "time", clock)

    def wait(self, seconds: float, n_own: int = 0) -> None:
        """Let time pass, in which this process works on so many cores."""
        self.seconds += seconds
        self.own += n_own * seconds
        self.idle += (4 - self.n_busy - n_own) * seconds


@pytest.fixture
def machine(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield Machine(monkeypatch)
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n_busy", "threads"), [(0, 4), (1, 3), (2, 2), (4, 1)])
def test_threads_are_as_many_as_free_cores(machine, capsys, n_busy, threads):
    machine.n_busy = n_busy
    with FreeCores():
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 4
    printed = capsys.readouterr().out
    assert (f"with {threads} of 4 threads" in printed) == bool(printed) == (threads < 4)


def test_a_neighbour_of_a_moment_costs_a_moment(machine):
    machine.n_busy = 3
    with FreeCores() as cores:
        assert torch.get_num_threads() == 1
        machine.n_busy = 0
        machine.wait(60, n_own=1)
        cores.look()
        assert torch.get_num_threads() == 4
        machine.n_busy = 2
        machine.wait(60, n_own=2)
        cores.look()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


def test_a_look_just_after_another_says_nothing(machine, capsys):
    with FreeCores() as cores:
        machine.seconds += 0.001  # the counters of a processor tick every hundredth of a second
        cores.look()
        assert torch.get_num_threads() == 4 and capsys.readouterr().out == ""


def test_other_devices_leave_the_threads_as_they_are(machine):
    machine.n_busy = 4
    with FreeCores(is_asked=False) as cores:
        cores.look()
        assert torch.get_num_threads() == 4


def test_the_users_own_number_of_threads_stays(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    machine.n_busy = 4
    with FreeCores() as cores:
        cores.look()
        assert torch.get_num_threads() == 4


def test_a_training_looks_at_each_epoch_and_sets_the_threads_back(tmp_path, monkeypatch):
    looks, before = [], torch.get_num_threads()
    monkeypatch.setattr(FreeCores, "look", lambda cores: looks.append(torch.set_num_threads(2)))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    train(prepare(tmp_path), 3)
    assert len(looks) == 3 and torch.get_num_threads() == before
