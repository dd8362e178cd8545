"""Several processes of one run, forked from the one that tests: torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[int], Any]


def pair(*works: Work, timeout: float = 250, kill: tuple[int, float] | None = None) -> list[int]:
    """`several` of two."""
    return several(2, *works, timeout=timeout, kill=kill)


def several(size: int, *works: Work, timeout: float = 250, kill: tuple[int, float] | None = None) -> list[int]:
    """Runs functions of the rank, one after another, in processes that can `join`; gives their exit codes. What a
    function returns is its exit code. `kill`: (rank, seconds after which it is killed)."""
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
    if kill is not None:
        time.sleep(kill[1])
        os.kill(processes[kill[0]].pid or 0, signal.SIGKILL)
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode if process.exitcode is not None else 1 for process in processes]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
