"""What TensorBoard shows beside scalars: the margins' distribution, a curve, and charts in a sensible order."""

import os

import torch
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from persist_sb3.callbacks.base import PersistCallback, iter_callbacks
from persist_sb3.callbacks.metrics import MetricsCallback
from persist_sb3.dashboards import tensorboard_layout
from persist_sb3.summary import with_intrinsic
from persist_sb3.viability import ViabilitySet


class TensorBoardCallback(PersistCallback):
    """
    Writes histograms of the scaled margins, ``persist/margins/<constraint>``, and a layout of all of this package's
    scalars for TensorBoard's tab "Custom Scalars". Where an intrinsic reward is paid and :class:`MetricsCallback` is
    there, the tab "Images" has ``persist/plots/intrinsic_by_time_alive``: that reward a step in the last episodes, and
    each bonus where there are several, by how long they lasted (:func:`~persist_sb3.plots.intrinsic`). With ``--track``
    W&B reads histograms and images from there.

    Where nothing is written to TensorBoard (``tensorboard_log=``, or ``-tb`` and ``--track`` of rl-zoo3) it does
    nothing. Training is the same, bit for bit, with and without.

    :param log_freq: timesteps between two histograms, at ends of rollouts
    :param plot_freq: timesteps between two images, at ends of rollouts. The end of training has one
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is not positive
    """

    def __init__(
        self,
        log_freq: int = 5_000,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
        plot_freq: int = 25_000,
    ) -> None:
        super().__init__(log_path, verbose)
        for name, value in (("log_freq", log_freq), ("plot_freq", plot_freq)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.log_freq = log_freq
        self.plot_freq = plot_freq
        self._writers: list[SummaryWriter] = []
        self._viability: ViabilitySet
        self._margins: list[torch.Tensor] = []
        self._logged_at = self._drawn_at = 0

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
        self._logged_at = self._drawn_at = self.num_timesteps
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
        if not self._writers:
            return
        if self.num_timesteps - self._drawn_at >= self.plot_freq:
            self._draw()
        if self.num_timesteps - self._logged_at >= self.log_freq:
            self._log_margins()

    def _on_training_end(self) -> None:
        # rl-zoo3 calls this twice for the first callback.
        if self._writers and self._drawn_at < self.num_timesteps:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self.num_timesteps
        metrics = [each for each in iter_callbacks(self.locals["callback"]) if isinstance(each, MetricsCallback)]
        paid = with_intrinsic(metrics[0].recent) if metrics else []
        if not paid:
            return
        # Late: it draws with matplotlib.
        from persist_sb3 import plots

        image = plots.pixels(plots.intrinsic({f"last {len(paid)} episodes": paid}))
        for writer in self._writers:
            writer.add_image("persist/plots/intrinsic_by_time_alive", image, self.num_timesteps, dataformats="HWC")

    def _log_margins(self) -> None:
        self._logged_at = self.num_timesteps
        margins = torch.cat(self._margins)
        self._margins = []
        for name, column in zip(self._viability.names, margins.T, strict=True):
            self.logger.record(f"persist/margins/{name}", column, exclude=("stdout", "log", "json", "csv"))
