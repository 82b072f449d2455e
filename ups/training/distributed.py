"""One training by several processes, which torchrun starts: each computes the loss of its part of every batch.

    torchrun --nproc-per-node 2 train.py

All walk the same path with the same weights. The first alone writes and speaks, and what it finds or decides it tells
the others through torchrun's store. They wait there and not in a collective, which has a deadline, and which a signal
does not reach. Without torchrun there is no group, and each function here does what one process would.
"""

import atexit
import itertools
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ups.data.batches import Batch
from ups.machine import processes, rank

T = TypeVar("T")

COLLECTIVE_DEADLINE = timedelta(hours=1)  # the processes differ by what one does alone within a step: a save, a log
POLL = 0.02  # seconds
FIRST_LEAVES, FIRST_HAS_LEFT = "first leaves", "first has left"  # keys of the store

_store: "dist.Store | None" = None  # torchrun's, while there is a group
_turns = itertools.count()


@contextmanager
def process_group() -> Iterator[None]:
    """Around all that a process does. Of those that fail, one tells the error."""
    global _store
    if processes() == 1:
        yield
        return
    _store, *_ = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=_store, rank=rank(), world_size=processes(), timeout=COLLECTIVE_DEADLINE
    )
    atexit.register(_leave)
    try:
        yield
    except Exception as error:
        # The others meet the same error, or lose their connection to this process: the first to fail has the cause.
        if _store.add("failures", 1) > 1:
            raise SystemExit(1) from error
        raise
    finally:
        if rank() == 0:
            _store.set(FIRST_LEAVES, "")
        dist.destroy_process_group()


def by_first(work: Callable[[], T]) -> T:
    """The first process does the work; all get its result, which is of JSON's types, when it is done."""
    if processes() == 1:
        return work()
    key = f"result {next(_turns)}"
    if rank() == 0:
        result = work()
        _store.set(key, json.dumps(result))
        return result
    while True:
        over = _store.check([FIRST_LEAVES])  # read before the key, which may come in between
        if _store.check([key]):
            return json.loads(_store.get(key))
        if over:
            raise SystemExit(1)
        time.sleep(POLL)


@contextmanager
def first_ahead() -> Iterator[None]:
    """The first process goes through it alone, the others after it: they find the files that it has made."""
    nothing = lambda: None
    if rank() > 0:
        by_first(nothing)
    yield
    if rank() == 0:
        by_first(nothing)


def own_part(batch: Batch) -> Batch:
    """What this process computes of a step's batch."""
    return batch if processes() == 1 else batch.part(rank(), processes(), _mean)


def mean_over_processes(tensors: Iterable[Tensor]) -> None:
    """Each becomes its mean over the processes, in place: one all-reduce of them all."""
    if processes() == 1:
        return
    tensors = list(tensors)
    flat = _mean(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def agreed(signum: int | None) -> int | None:
    """The signal that any process has received: all stop at the same step, or none."""
    if processes() == 1:
        return signum
    largest = torch.tensor(signum or 0)  # on the CPU: nothing waits for a GPU
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest) or None


def _mean(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total / processes()


def _leave() -> None:
    """At a process's very end. As soon as one ends in an error, torchrun ends all: so the first, which saves and
    finishes the loggers, goes ahead, if it meets the error too."""
    handler = signal.SIG_IGN if rank() == 0 else signal.SIG_DFL
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    if rank() == 0:
        _store.set(FIRST_HAS_LEFT, "")
    elif _appears(FIRST_LEAVES, 5):
        _appears(FIRST_HAS_LEFT, 30)  # as long as torchrun gives a process before it kills it


def _appears(key: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
