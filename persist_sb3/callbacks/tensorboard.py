"""What TensorBoard shows beside scalars: distributions, plots, tables, a video, and a layout of all charts."""

import os
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from stable_baselines3.common.logger import TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from persist_sb3.callbacks.base import PersistCallback, iter_callbacks
from persist_sb3.callbacks.gathering import COLUMNS, Gathering
from persist_sb3.callbacks.wandb import TrackCallback
from persist_sb3.dashboards import name_layers, tensorboard_layout
from persist_sb3.summary import with_intrinsic
from persist_sb3.viability import ViabilitySet


class TensorBoardCallback(PersistCallback):
    """
    Writes to TensorBoard what is no scalar:

    - histograms of the scaled margins, ``persist/margins/<constraint>``;
    - images ``persist/plots/survival_curve`` (Kaplan-Meier curve of the last episodes, as :class:`MetricsCallback` has
      them), ``persist/plots/intrinsic_by_time_alive`` (the intrinsic reward a step in the same episodes, and each bonus
      where there are several, by how long they lasted, see :func:`~persist_sb3.plots.intrinsic`) and
      ``persist/plots/calibration`` (share of decisions that stayed safe, by the critic's value, with
      :class:`CalibrationCallback`);
    - texts ``persist/tables/run`` (layers, callbacks and constraints, which the name of a run does not tell),
      ``persist/tables/interventions`` (the last ones, with what was in danger and how sure the shield was) and
      ``persist/tables/violations_by_constraint`` (steps that violate each, since the beginning);
    - ``persist/video``, an image that moves: an evaluation episode with its gauges, in an environment made for that,
      with the layers and models of the training. Where that cannot be copied or drawn, a warning says so;
    - a layout of all of this package's scalars for the tab "Custom Scalars".

    With ``--track`` W&B copies histograms and images from there. The video is then left to :class:`TrackCallback`.

    Where nothing is written to TensorBoard (``tensorboard_log=``, or ``-tb`` and ``--track`` of rl-zoo3) it does
    nothing. Training is the same, bit for bit, with and without.

    :param log_freq: timesteps between two histograms, at ends of rollouts. The end of training has one
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param plot_freq: timesteps between two of each plot and table, at ends of rollouts. The end of training has one
    :param video_freq: timesteps between two videos, at ends of rollouts; 0 for none. The end of training has one
    :param most: interventions in the table
    :param seed: of the evaluation episode, the same one each time
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        log_freq: int = 5_000,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
        plot_freq: int = 25_000,
        video_freq: int = 100_000,
        most: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        for name, value in (("log_freq", log_freq), ("plot_freq", plot_freq), ("most", most)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if video_freq < 0:
            raise ValueError(f"video_freq={video_freq} must be at least 0")
        self.log_freq = log_freq
        self.plot_freq = plot_freq
        self.video_freq = video_freq
        self.most = most
        self.seed = seed
        self._writers: list[SummaryWriter] = []
        self._viability: ViabilitySet
        self._gathering: Gathering
        self._margins: list[torch.Tensor] = []
        self._logged_at = self._drawn_at = self._filmed_at = 0
        self._films = False

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
        self._gathering = Gathering(self, self._viability, self.most, self.seed)
        self._margins = []
        self._logged_at = self._drawn_at = self._filmed_at = self.num_timesteps
        siblings = iter_callbacks(self.locals["callback"])
        self._films = self.video_freq > 0 and not any(
            isinstance(each, TrackCallback) and each.active and each.video_freq for each in siblings
        )
        self._describe()
        super()._on_training_start()

    def _describe(self) -> None:
        """Say what the run is, which its name does not, and which charts there are."""
        # Late: it draws with matplotlib.
        from persist_sb3 import tables

        gathering = self._gathering
        told = [
            ("layers", name_layers(gathering.layers)),
            ("callbacks", ", ".join(gathering.callbacks)),
            ("constraints", ", ".join(self._viability.names)),
        ]
        for writer in self._writers:
            writer.add_custom_scalars(tensorboard_layout())
            writer.add_text("persist/tables/run", tables.markdown(("", "what it is trained with"), told))

    def _on_step(self) -> bool:
        if not self._writers:
            return True
        step = self.store.read(self.locals)
        self._margins.append(torch.from_numpy(self._viability.margins(step.next_internal)))
        self._gathering.add(step, self.locals["infos"])
        return super()._on_step()

    def _on_rollout_end(self) -> None:
        if not self._writers:
            return
        if self.num_timesteps - self._drawn_at >= self.plot_freq:
            self._draw()
        if self._films and self.num_timesteps - self._filmed_at >= self.video_freq:
            self._film()
        if self.num_timesteps - self._logged_at >= self.log_freq:
            self._log_margins()

    def _on_training_end(self) -> None:
        if not self._writers:
            return
        # rl-zoo3 calls this twice for the first callback.
        if self._margins:
            self._log_margins()
        if self._drawn_at < self.num_timesteps:
            self._draw()
        if self._films and self._filmed_at < self.num_timesteps:
            self._film()
        self._gathering.close()

    def _draw(self) -> None:
        self._drawn_at = self.num_timesteps
        # Late: it draws with matplotlib.
        from persist_sb3 import plots, tables

        episodes, outcomes = self._gathering.episodes, self._gathering.outcomes
        figures = {}
        if episodes:
            figures["survival_curve"] = plots.survival({f"last {len(episodes)} episodes": episodes})
        paid = with_intrinsic(episodes)
        if paid:
            figures["intrinsic_by_time_alive"] = plots.intrinsic({f"last {len(paid)} episodes": paid})
        if outcomes is not None:
            figures["calibration"] = plots.calibration(outcomes)
        texts = {"violations_by_constraint": tables.markdown(("constraint", "steps"), self._gathering.violations)}
        if self._gathering.interventions:
            texts["interventions"] = tables.markdown(COLUMNS, self._gathering.interventions)
        for name, figure in figures.items():
            image = plots.pixels(figure)
            for writer in self._writers:
                writer.add_image(f"persist/plots/{name}", image, self.num_timesteps, dataformats="HWC")
        for name, text in texts.items():
            for writer in self._writers:
                writer.add_text(f"persist/tables/{name}", text, self.num_timesteps)

    def _film(self) -> None:
        self._filmed_at = self.num_timesteps
        film = self._gathering.film()
        if film is None:
            return
        with Image.open(BytesIO(film)) as first:
            width, height = first.size
        # The writer's own add_video makes a GIF, too, of frames that are all in memory at once, and needs moviepy.
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=film)
        for writer in self._writers:
            events: Any = writer.file_writer
            events.add_summary(Summary(value=[Summary.Value(tag="persist/video", image=image)]), self.num_timesteps)

    def _log_margins(self) -> None:
        self._logged_at = self.num_timesteps
        margins = torch.cat(self._margins)
        self._margins = []
        for name, column in zip(self._viability.names, margins.T, strict=True):
            for writer in self._writers:
                writer.add_histogram(f"persist/margins/{name}", column, self.num_timesteps)
