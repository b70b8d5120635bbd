"""What W&B shows beside scalars: why the shield intervened, who survives, how it looks."""

import os
import sys
import warnings
from io import BytesIO
from typing import Any

import numpy as np
from stable_baselines3.common.logger import TensorBoardOutputFormat

from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.callbacks.gathering import COLUMNS, Gathering
from persist_sb3.dashboards import GROUP, name_layers
from persist_sb3.metrics import survival_curve
from persist_sb3.shield.calibration import Outcomes
from persist_sb3.summary import bonus_names, intrinsic_by_time_alive, with_intrinsic
from persist_sb3.viability import ViabilitySet


def active_run() -> Any:
    """
    :return: the active run of W&B, as there is one with ``--track``; None if there is none. Whoever tracks has imported
        W&B, and nobody else should wait for that
    """
    wandb = sys.modules.get("wandb")
    return None if wandb is None else wandb.run


class TrackCallback(PersistCallback):
    """
    Adds to the W&B run that is active what its synchronisation of TensorBoard does not carry: it logs no scalar.

    - ``persist/interventions``: a table of the last interventions, with what was in danger and how sure the shield was;
    - ``persist/survival_curve``: Kaplan-Meier curve of the last episodes, as :class:`MetricsCallback` has them;
    - ``persist/intrinsic_by_time_alive``: the intrinsic reward a step in the same episodes, by how long they lasted,
      and each bonus where there are several;
    - ``persist/violations_by_constraint``: steps that violate each, since the beginning;
    - ``persist/calibration_plot``: share of decisions that stayed safe, by the critic's value, with
      :class:`CalibrationCallback`;
    - ``persist/video``: an evaluation episode with its gauges, in an environment made for that, with the layers and
      models of the training. Where that cannot be copied or drawn, a warning says so

    The run gets the layers as tags, and ``persist_layers``, ``persist_callbacks`` and ``persist_constraints`` in its
    configuration. By the first, :mod:`persist_sb3.dashboards` groups runs so that ablations compare. The group of a run
    that has begun cannot be set: ``python -m persist_sb3.train`` sets it before.

    Without an active run (``--track`` of rl-zoo3, or ``wandb.init(sync_tensorboard=True)`` with a ``tensorboard_log``)
    it does nothing, and does not import W&B. Where scalars do not reach the run, it warns. Training is the same, bit
    for bit, with and without.

    :param log_freq: timesteps between two logs of tables and plots, at ends of rollouts
    :param video_freq: timesteps between two videos, at ends of rollouts; 0 for none. The end of training has one
    :param most: interventions in the table
    :param seed: of the evaluation episode, the same one each time
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        log_freq: int = 25_000,
        video_freq: int = 100_000,
        most: int = 200,
        seed: int = 0,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        for name, value, least in (("log_freq", log_freq, 1), ("video_freq", video_freq, 0), ("most", most, 1)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.log_freq = log_freq
        self.video_freq = video_freq
        self.most = most
        self.seed = seed
        self._run: Any = None

    @property
    def active(self) -> bool:
        """Whether there is a run that it adds to."""
        return self._run is not None

    def _init_callback(self) -> None:
        self._wandb: Any = sys.modules.get("wandb")
        self._run = active_run()
        if self._run is not None:
            super()._init_callback()

    def _on_training_start(self) -> None:
        if self._run is None:
            return
        if not (self._run.settings.sync_tensorboard and self._writes_tensorboard):
            warnings.warn(
                "TrackCallback: W&B gets no scalars, such as persist/survival. They come by way of TensorBoard: give "
                "sync_tensorboard=True to wandb.init, and tensorboard_log to the model",
                stacklevel=2,
            )
        self._viability: ViabilitySet = self.lookup("viability")
        self._gathering = Gathering(self, self._viability, self.most, self.seed)
        self._logged_at = self._filmed_at = self.num_timesteps
        self._finished = -1
        self._describe()
        super()._on_training_start()

    @property
    def _writes_tensorboard(self) -> bool:
        return any(isinstance(each, TensorBoardOutputFormat) for each in self.logger.output_formats)

    def _describe(self) -> None:
        """Tell the run what it is, so that runs can be grouped by it."""
        run, gathering = self._run, self._gathering
        run.tags = tuple(dict.fromkeys([*(run.tags or ()), *gathering.layers]))
        told = {
            GROUP: name_layers(gathering.layers),
            "persist_callbacks": gathering.callbacks,
            "persist_constraints": list(self._viability.names),
        }
        run.config.update(told, allow_val_change=True)
        for section in ("persist", "rollout", "train", "eval", "time"):
            run.define_metric(f"{section}/*", step_metric="global_step")

    def _on_step(self) -> bool:
        if self._run is None:
            return True
        self._gathering.add(self.store.read(self.locals), self.locals["infos"])
        return super()._on_step()

    def _on_rollout_end(self) -> None:
        if self._run is None:
            return
        if self.num_timesteps - self._logged_at >= self.log_freq:
            self._logged_at = self.num_timesteps
            self._log(self._plots())
        if self.video_freq and self.num_timesteps - self._filmed_at >= self.video_freq:
            self._filmed_at = self.num_timesteps
            self._log(self._video())

    def _on_training_end(self) -> None:
        # rl-zoo3 calls this twice for the first callback.
        if self._run is None or self._finished == self.num_timesteps:
            return
        self._finished = self.num_timesteps
        self._log({**self._plots(), **(self._video() if self.video_freq else {})})
        self._gathering.close()

    def _log(self, what: dict[str, Any]) -> None:
        if what:
            self._run.log({**what, "global_step": self.num_timesteps})

    def _plots(self) -> dict[str, Any]:
        """
        :return: tables and plots by key
        """
        wandb, plot, gathering = self._wandb, self._wandb.plot, self._gathering
        bars = wandb.Table(columns=["constraint", "steps"], data=[list(row) for row in gathering.violations])
        charts = {"persist/violations_by_constraint": plot.bar(bars, "constraint", "steps", "steps in violation")}
        if gathering.interventions:
            rows = [list(row) for row in gathering.interventions]
            charts["persist/interventions"] = wandb.Table(columns=list(COLUMNS), data=rows)
        episodes = gathering.episodes
        if episodes:
            curve = survival_curve(episodes)
            times = np.unique(np.rint(np.linspace(0.0, curve.last, 100)))
            alive = [curve.at(times).tolist()]
            title = f"the last {len(episodes)} episodes"
            charts["persist/survival_curve"] = plot.line_series(times.tolist(), alive, ["alive"], title, "step")
            paid = with_intrinsic(episodes)
            if paid:
                bonuses = bonus_names(paid)
                # Groups are of episodes that lasted alike, so they are the same for each.
                lines = [intrinsic_by_time_alive(paid, bonus) for bonus in (None, *bonuses)]
                lasted, means = [p["time_alive"] for p in lines[0]], [[p["mean"] for p in line] for line in lines]
                keys = ["intrinsic", *bonuses]
                charts["persist/intrinsic_by_time_alive"] = plot.line_series(lasted, means, keys, title, "step")
        outcomes = gathering.outcomes
        if outcomes is not None:
            charts["persist/calibration_plot"] = self._calibration_plot(outcomes)
        return charts

    def _calibration_plot(self, outcomes: Outcomes) -> Any:
        return self._wandb.plot.line_series(
            outcomes.value,
            [outcomes.realised, outcomes.declared],
            ["stayed safe", "declared"],
            f"decisions near the boundary (threshold {outcomes.threshold:.2f})",
            "critic's value",
        )

    def _video(self) -> dict[str, Any]:
        """
        :return: an evaluation episode by key; nothing if that cannot be had
        """
        film = self._gathering.film()
        return {} if film is None else {"persist/video": self._wandb.Video(BytesIO(film), format="gif")}
