"""Several processes of one run, forked from the one that tests: torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[int], Any]


@dataclass(frozen=True)
class Strike:
    """A signal to one of the processes."""

    rank: int
    after: float
    """Seconds since all were started."""
    number: int = signal.SIGKILL


def pair(*works: Work, timeout: float = 250, strike: Strike | None = None) -> list[int]:
    """`several` of two."""
    return several(2, *works, timeout=timeout, strike=strike)


def several(size: int, *works: Work, timeout: float = 250, strike: Strike | None = None) -> list[int]:
    """Runs functions of the rank, one after another, in processes that can `join`; gives their exit codes. What a
    function returns is its exit code. Who has not ended after `timeout` seconds, counted from the strike, is killed; so
    is one that a strike has stopped, when the others have ended."""
    ports = [_free_port() for _ in works]

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        os.environ["LOCAL_WORLD_SIZE"] = str(size)
        for port, work in zip(ports, works, strict=True):
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = work(rank)
            if code:
                sys.exit(code)

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    struck = None
    if strike is not None:
        time.sleep(strike.after)
        struck = processes[strike.rank]
        os.kill(struck.pid or 0, strike.number)
    end = time.monotonic() + timeout
    for process in sorted(processes, key=lambda process: process is struck):
        stopped = strike is not None and process is struck and strike.number == signal.SIGSTOP
        process.join(0 if stopped else max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode if process.exitcode is not None else 1 for process in processes]


def torchrun(*words: str, timeout: float = 120) -> int:
    """Starts two new processes as the program torchrun does, whose function is called in a forked process, and gives
    its exit code. `words` are a script and its own words, or `-m` and a module."""

    def launch() -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        run.main(["--standalone", "--nproc-per-node", "2", *words])

    from torch.distributed import run

    launcher = multiprocessing.get_context("fork").Process(target=launch)
    launcher.start()
    launcher.join(timeout)
    if launcher.is_alive():
        launcher.terminate()  # it ends the others
        launcher.join()
    return 1 if launcher.exitcode is None else launcher.exitcode


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
