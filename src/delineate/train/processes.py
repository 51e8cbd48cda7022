"""The processes of a run: how they start, how they end together, and what they tell each other."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.plugins.precision import Precision as FabricPrecision
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from delineate.config import TrainConfig
from delineate.devices import Precision, pick_device, pick_precision
from delineate.errors import ConfigError, DelineateError
from delineate.guard import ADVICE, UNGUARDED

# What the libraries announce about themselves is not for our users; their warnings and errors are. Here and not in a function,
# because Fabric speaks in a new process before it calls us.
for _name in ("lightning_fabric", "lightning.fabric", "lightning_utilities.core.rank_zero"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # our names, Fabric's


class Stop:
    """While active, Ctrl-C and SIGTERM do not end the process but set `requested`, so that it can end between two steps.

    With `impatient`, a second signal raises KeyboardInterrupt at once.
    """

    def __init__(self, *signals: signal.Signals, impatient: bool) -> None:
        self.requested = False
        self._signals, self._impatient = signals, impatient
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._former = {number: signal.signal(number, self._handle) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.requested and self._impatient:
            raise KeyboardInterrupt
        self.requested = True


Job = Callable[[Fabric, Stop], None]
"""What every process of a run calls, a function that can be pickled; raises KeyboardInterrupt after a stop."""


def launch(config: TrainConfig, job: Job) -> None:
    """Call `job(fabric, stop)` in every process of the run, and return when all are done.

    Under torchrun this process is one of them; with `config.devices` > 1 they are started here, else there is only this one.
    An error in one process ends all, and is raised once. Raises KeyboardInterrupt after Ctrl-C or SIGTERM.
    """
    fabric = make_fabric(config)
    if under_torchrun():
        fabric.launch()
        with Stop(signal.SIGINT, signal.SIGTERM, impatient=False) as stop, _first_error_only(fabric):
            job(fabric, stop)
            _part(fabric)
    elif config.devices > 1:
        _spawn(fabric, job)
    else:
        fabric.launch()
        with Stop(signal.SIGINT, signal.SIGTERM, impatient=True) as stop:
            job(fabric, stop)


def make_fabric(config: TrainConfig) -> Fabric:
    """Return Fabric for the device, processes and precision of `config`; raises `ConfigError` where they cannot be."""
    device = pick_device(config.device)
    precision = make_precision(pick_precision(config.precision, device), device)
    if under_torchrun():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if config.devices not in (1, local):
            raise ConfigError(f"devices is {config.devices}, but torchrun started {local} processes here; leave devices away")
        return Fabric(accelerator=device.type, strategy="ddp", devices=local, num_nodes=world // local, plugins=[precision])
    if config.nodes > 1:
        raise ConfigError(f"nodes is {config.nodes}: start the run with torchrun --nnodes {config.nodes} on each of them")
    if config.devices == 1:
        index: Any = 1 if device.index is None or device.type != "cuda" else [device.index]
        return Fabric(accelerator=device.type, devices=index, plugins=[precision])
    if device.type == "mps" or device.index is not None:
        raise ConfigError(f"devices is {config.devices}, but device '{config.device}' is one; take device cpu or cuda")
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(f"devices is {config.devices}, but this machine has {torch.cuda.device_count()} GPUs")
    plugins = [precision, LightningEnvironment()]
    return Fabric(accelerator=device.type, strategy="ddp_spawn", devices=config.devices, plugins=plugins)


class Autocast(MixedPrecision):
    """Autocast chooses what is computed in fewer bits; Fabric would round all inputs before, boxes to several pixels too."""

    def convert_input(self, data: Any) -> Any:
        """Return the inputs of the network as they are."""
        return data


def make_precision(precision: Precision, device: torch.device) -> FabricPrecision:
    """Return what computes in a precision, by our name for it."""
    return FabricPrecision() if precision == "fp32" else Autocast(cast("Any", PRECISIONS[precision]), device.type)


def over_processes(fabric: Fabric, values: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """Return the sum or mean of `values` over the processes, on the CPU; waits for all of them."""
    if fabric.world_size > 1:
        values = cast("Tensor", fabric.all_reduce(values.to(fabric.device), reduce_op=how))
    return values.cpu()


def under_torchrun() -> bool:
    """Whether torchrun started this process, as one of several."""
    return TorchElasticEnvironment.detect()


def first_process() -> bool:
    """Whether this process speaks and writes for the run, once `launch` has returned."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def _spawn(fabric: Fabric, job: Job) -> None:
    """Run the job in processes of our own: pass signals on to them, and raise what ended them."""
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    stop = _Forward()
    try:
        with stop:
            interrupted = fabric.launch(partial(_child, errors=errors, job=job))
    except (ProcessRaisedException, ProcessExitedException) as error:
        if stop.requested:
            raise KeyboardInterrupt from error
        if not errors.empty():
            raise errors.get() from error
        if isinstance(error, ProcessExitedException) and error.exit_code == UNGUARDED:
            raise ConfigError(ADVICE) from error
        if isinstance(error, ProcessExitedException) and error.signal_name == "SIGKILL":
            raise DelineateError(
                f"process {error.error_index} was killed, often because memory ran out; lower batch, augment.patch or devices"
            ) from error
        raise
    if interrupted:
        raise KeyboardInterrupt


def _child(fabric: Fabric, *, errors: Any, job: Job) -> bool:
    """Run the job in a process that `_spawn` started; returns whether it was interrupted."""
    with Stop(signal.SIGINT, impatient=False) as stop:  # SIGTERM comes when another process has failed: end at once
        try:
            job(fabric, stop)
            _part(fabric)
        except KeyboardInterrupt:
            return True
        except DelineateError as error:
            errors.put(error)
            raise
    return False


class _Forward(Stop):
    """Passes the first Ctrl-C or SIGTERM on to the child processes, and ends them at the second."""

    def __init__(self) -> None:
        super().__init__(signal.SIGINT, signal.SIGTERM, impatient=True)

    def _handle(self, *_: object) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL if self.requested else signal.SIGINT)
        self.requested = True


def _part(fabric: Fabric) -> None:
    """Close the connections between the processes when all are done, so that none loses what an ending one has sent it."""
    fabric.barrier()
    torch.distributed.destroy_process_group()


@contextmanager
def _first_error_only(fabric: Fabric) -> Iterator[None]:
    """Let the first process that fails raise its error, and the others, which then fail for want of it, end quietly."""
    store: Any = torch.distributed.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    host = os.environ["MASTER_ADDR"]
    first = fabric.global_rank == 0
    own = store(host, 0, is_master=True, wait_for_workers=False) if first else None
    port = fabric.broadcast(own.port if own else 0)
    board = own or store(host, port, is_master=False)
    try:
        yield
    except KeyboardInterrupt:  # all stop together; the first says so
        if not first:
            sys.exit(130)
        raise
    except Exception:  # of any kind: it is raised again, or this process ends with exit code 1, its error being another's echo
        try:
            failed_before = board.add("failed", 1) > 1
        except RuntimeError:  # the first process has the board, and is gone
            failed_before = True
        if failed_before:
            sys.exit(1)
        raise
