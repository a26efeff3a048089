"""TODO docstring."""

import signal
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from ..data.rows import NumberedRows
from .distributed import in_parallel


class _KeepTemperatureInRange(TrainerCallback):
    """Weights that leave the range would take as long to come back as they took to leave."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        base = model.base_model
        with torch.no_grad():
            base.temperature.clamp_(base.config.temperature_min, base.config.temperature_max)


class StopWhenTold(TrainerCallback):
    """On SIGTERM, ends the training after the step at work, with a checkpoint from which it goes on exactly.

    The library's `enable_jit_checkpoint` saves in the middle of a step, after its random numbers were drawn. Several
    processes stop after the same step, whichever was told first.

    Args:
        told: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.told = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, number: int, frame: Any) -> None:
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if in_parallel():
            self.told = any(gather_object([self.told]))
        if self.told:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)


class _TellEpoch(TrainerCallback):
    """accelerate tells a data set its epoch only where no shuffled batches are divided among processes or skipped."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if isinstance(train_dataloader.dataset, NumberedRows):
            train_dataloader.dataset.set_epoch(int(state.epoch))
