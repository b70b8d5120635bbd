"""What TensorBoard shows beside scalars: the margins' distribution, and charts in an order that makes sense."""

import os

import torch
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.dashboards import tensorboard_layout
from persist_sb3.viability import ViabilitySet


class TensorBoardCallback(PersistCallback):
    """
    Writes histograms of the scaled margins, ``persist/margins/<constraint>``, and a layout of all of this package's
    scalars for TensorBoard's tab "Custom Scalars". With ``--track`` W&B reads the histograms from there.

    Where nothing is written to TensorBoard (``tensorboard_log=``, or ``-tb`` and ``--track`` of rl-zoo3) it does
    nothing. Training is the same, bit for bit, with and without.

    :param log_freq: timesteps between two histograms, at ends of rollouts
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if ``log_freq`` is not positive
    """

    def __init__(self, log_freq: int = 5_000, log_path: str | os.PathLike[str] | None = None, verbose: int = 0) -> None:
        super().__init__(log_path, verbose)
        if log_freq < 1:
            raise ValueError(f"log_freq={log_freq} must be at least 1")
        self.log_freq = log_freq
        self._writers: list[SummaryWriter] = []
        self._viability: ViabilitySet
        self._margins: list[torch.Tensor] = []
        self._logged_at = 0

    def _init_callback(self) -> None:
        self._writers = [
            each.writer for each in self.logger.output_formats if isinstance(each, TensorBoardOutputFormat)
        ]
        if self._writers:
            super()._init_callback()

    def _on_training_start(self) -> None:
        if not self._writers:
            return
        self._viability = self.lookup("viability")
        self._margins = []
        self._logged_at = self.num_timesteps
        for writer in self._writers:
            writer.add_custom_scalars(tensorboard_layout())
        super()._on_training_start()

    def _on_step(self) -> bool:
        if not self._writers:
            return True
        step = self.store.read(self.locals)
        self._margins.append(torch.from_numpy(self._viability.margins(step.next_internal)))
        return super()._on_step()

    def _on_rollout_end(self) -> None:
        if not self._margins or self.num_timesteps - self._logged_at < self.log_freq:
            return
        self._logged_at = self.num_timesteps
        margins = torch.cat(self._margins)
        self._margins = []
        for name, column in zip(self._viability.names, margins.T, strict=True):
            self.logger.record(f"persist/margins/{name}", column, exclude=("stdout", "log", "json", "csv"))
