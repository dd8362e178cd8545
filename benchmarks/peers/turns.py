"""Both sides of a row, each in a process of its own, in turns."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import ours
import theirs
from rows import Row

PEER = "peer"
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
clock = time.process_time if THREADS == 1 else time.perf_counter


def serve(wire: Connection, side: str, row: Row, paths: dict[str, str]) -> None:
    """In a process of its own: builds a side of a row, the peer's or an objective of ours, and runs a form of it
    whenever it is told the form's name."""
    sys.stdout = sys.stderr  # what a peer prints is no part of the record
    try:
        import torch

        torch.set_num_threads(THREADS)
        torch.manual_seed(0)
        forms = theirs.PEERS[row.peer](row, paths) if side == PEER else ours.WORKS[row.work](row, side)
    except Exception as error:
        wire.send(f"{type(error).__name__}: {error}")
        raise
    wire.send(list(forms))
    while form := wire.recv():
        started = clock()
        forms[form]()
        wire.send(clock() - started)


def compare(row: Row, paths: dict[str, str], seconds: float, rounds: int) -> dict[str, Any]:
    """The least time of each form of each side, and our time over theirs."""
    context = multiprocessing.get_context("spawn")
    wires: dict[str, Connection] = {}
    processes = []
    taken: dict[tuple[str, str], list[float]] = {}
    for side in (PEER, *row.objectives):
        wires[side], far = context.Pipe()
        process = context.Process(target=serve, args=(far, side, row, paths), daemon=True)
        process.start()
        processes.append(process)
        forms = wires[side].recv()
        if isinstance(forms, str):
            raise SystemExit(f"{row.name(side)}: {forms}")
        taken |= {(side, form): [] for form in forms}

    def run(side: str, form: str) -> float:
        wires[side].send(form)
        return float(wires[side].recv())

    pairs = sorted(taken, key=lambda pair: pair[1])  # what is compared runs close together
    for side, form in pairs:
        first = run(side, form)
        if first > seconds / 4 and not form.endswith(ours.COMPILED):  # such a run hardly feels that it is the first
            taken[side, form].append(first)
    for number in range(rounds):
        for side, form in pairs if number % 2 else pairs[::-1]:
            if not taken[side, form] or sum(taken[side, form]) < seconds:
                taken[side, form].append(run(side, form))
    for wire in wires.values():
        wire.send("")
    for process in processes:
        process.join()
    least = {pair: min(times) for pair, times in taken.items()}
    return {
        **asdict(row),
        "codes": row.codes,
        "seconds": {f"{side} {form}": round(value, 4) for (side, form), value in least.items()},
        "rounds": {f"{side} {form}": len(times) for (side, form), times in taken.items()},
        "r": {side: ratios(least, side) for side in row.objectives},
    }


def ratios(least: dict[tuple[str, str], float], side: str) -> dict[str, float]:
    """The time of each form of ours over the peer's in float32, and in bf16 on both sides."""
    pairs = {form: (form, "fp32") for of, form in least if of == side} | {"both bf16": ("bf16", "bf16")}
    return {name: round(least[side, ours] / least[PEER, peer], 3) for name, (ours, peer) in pairs.items()}
