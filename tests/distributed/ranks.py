"""Runs a function in several processes that know each other, and leaves none of them behind."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    count: int, work: Callable[..., Any], *args: Any, timeout: float = 120.0, start: str = "spawn"
) -> list[Any]:
    """Calls ``work(rank, *args)`` in ``count`` processes of one gloo group.

    Args:
        start: how they are made; from a ``"forkserver"`` they share their imports, and an environment that is as old.

    Returns:
        What each rank returned (anything that ``torch.save`` can keep).

    Raises:
        AssertionError: a process failed, or they were not done in time; then all of them were killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        codes = start_ranks(count, work, *args, folder=folder, timeout=timeout, start=start)
        assert codes == [0] * count, f"exit codes of the ranks: {codes}"
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(count)]


def start_ranks(
    count: int, work: Callable[..., Any], *args: Any, folder: str, timeout: float, start: str = "spawn"
) -> list[int | None]:
    """The exit codes of the ranks; None for one that had to be killed at the deadline."""
    context = mp.get_context(start)
    context.set_forkserver_preload([work.__module__])
    port = free_port()
    processes = [context.Process(target=_enter, args=(rank, count, port, folder, work, args)) for rank in range(count)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _enter(rank: int, count: int, port: int, folder: str, work: Callable[..., Any], args: tuple) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(work(rank, *args), Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()
    # A thread of torch that still lives when the interpreter takes its statics down aborts the process, rarely.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
