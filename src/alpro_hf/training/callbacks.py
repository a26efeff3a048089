"""Callbacks of a training: range of the temperature, epoch of the data set, stop on signals, last log."""

import os
import signal
import threading
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from ..data.rows import NumberedRows
from ..model.wrappers_alpro import plain_model
from .distributed import in_parallel


class KeepTemperatureInRange(TrainerCallback):
    """Clamps the temperature of the contrastive loss after each optimiser step.

    The model clamps the temperature where it uses it. The parameter itself must not leave the range either: it would
    take as many steps to come back.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        base = plain_model(model).base_model  # the model itself, or the `AlproModel` inside a model with a head
        with torch.no_grad():
            base.temperature.clamp_(base.config.temperature_min, base.config.temperature_max)


class StopWhenTerminated(TrainerCallback):
    """Ends the training on SIGTERM or Ctrl-C after the current step, with a checkpoint that resumes exactly.

    The library's `enable_jit_checkpoint` saves in the middle of a step, after the step has drawn random numbers, so a
    resumed training would draw others. Several processes stop after the same step, whichever got the signal first. A
    second Ctrl-C interrupts at once.

    Attributes:
        stopped_by: Number of the signal that a process received; 0: none.
    """

    def __init__(self) -> None:
        self.stopped_by = 0
        self._previous: dict[int, Any] = {}
        self._own_process = os.getpid()

    @property
    def terminated(self) -> bool:
        """Whether a process received a signal."""
        return bool(self.stopped_by)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers there alone
        for number in (signal.SIGTERM, signal.SIGINT):
            # a shell lets its background jobs ignore SIGINT
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)

    # Only sets a flag: the handler may run in the middle of any step. Processes that load data inherit it when they
    # are forked, so a Ctrl-C in a terminal, which reaches them, too, does not end them before the step is done.
    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.stopped_by and os.getpid() == self._own_process:
            raise KeyboardInterrupt
        self.stopped_by = number
        if number == signal.SIGINT and os.getpid() == self._own_process:
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if in_parallel():  # a launcher signals its processes one by one; a lone stop would leave the others waiting
            self.stopped_by = max(gather_object([self.stopped_by]))
        if self.stopped_by:
            control.should_save = control.should_training_stop = True
            control.should_log = args.logging_strategy != "no"

    def restore(self) -> None:
        """Give the signals back to whoever had them before the training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()


class LogLastSteps(TrainerCallback):
    """Logs the loss of the last steps, which the library leaves out if their number is below `logging_steps`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.logging_strategy != "no" and state.global_step >= state.max_steps:
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the last step of a training may be left out, and then `max_steps` is never reached
        if args.logging_strategy != "no" and state.epoch is not None and state.epoch > state.num_train_epochs - 1:
            control.should_log = True


class SetDatasetEpoch(TrainerCallback):
    """Passes the epoch to the data set, which draws its frames by epoch and row.

    accelerate does so by itself, except where it divides shuffled batches among processes or skips batches on resume.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if isinstance(train_dataloader.dataset, NumberedRows):
            train_dataloader.dataset.set_epoch(int(state.epoch))


__all__ = ["KeepTemperatureInRange", "LogLastSteps", "SetDatasetEpoch", "StopWhenTerminated"]
