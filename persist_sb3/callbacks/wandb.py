"""What W&B shows beside scalars: why the shield intervened, who survives, how it looks."""

import os
import pickle
import sys
import tempfile
import warnings
from collections import deque
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from persist_sb3.callbacks.base import PersistCallback, bind_all, iter_callbacks
from persist_sb3.callbacks.metrics import MetricsCallback
from persist_sb3.dashboards import GROUP
from persist_sb3.metrics import survival_curve
from persist_sb3.shield.calibration import EDGES, Calibration
from persist_sb3.summary import bonus_names, intrinsic_by_time_alive, with_intrinsic
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers.adapters import VecLayerWrapper
from persist_sb3.wrappers.remake import remake

#: Columns of the table of interventions.
COLUMNS = (
    "timestep",
    "environment",
    "proposed",
    "executed",
    "in danger",
    "margin",
    "foreseen in",
    "value",
    "p_safe",
    "why",
)


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

    The run gets the layers and callbacks as tags, and ``persist_layers`` in its configuration, by which
    :mod:`persist_sb3.dashboards` groups runs so that ablations compare.

    Without an active run (``--track`` of rl-zoo3, or ``wandb.init(sync_tensorboard=True)`` with a ``tensorboard_log``)
    it does nothing, and does not import W&B. Training is the same, bit for bit, with and without.

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

    def _init_callback(self) -> None:
        # Whoever tracks has imported it; nobody else should wait for that.
        self._wandb: Any = sys.modules.get("wandb")
        self._run = None if self._wandb is None else self._wandb.run
        if self._run is not None:
            super()._init_callback()

    def _on_training_start(self) -> None:
        if self._run is None:
            return
        self._viability: ViabilitySet = self.lookup("viability")
        self._rows: deque[list[Any]] = deque(maxlen=self.most)
        self._violations = np.zeros(len(self._viability.constraints), dtype=np.intp)
        self._logged_at = self._filmed_at = self.num_timesteps
        self._finished = -1
        self._stage: VecEnv | None = None
        self._films = self.video_freq > 0
        self._describe()
        super()._on_training_start()

    def _describe(self) -> None:
        """Tell the run what it is, so that runs can be grouped by it."""
        layers = _layers(self.training_env)
        callbacks = [
            type(callback).__name__
            for callback in iter_callbacks(self.locals["callback"])
            if isinstance(callback, PersistCallback) and not isinstance(callback, TrackCallback)
        ]
        run = self._run
        run.tags = tuple(dict.fromkeys([*(run.tags or ()), *layers]))
        told = {GROUP: "+".join(layers) or "none", "persist_callbacks": callbacks}
        run.config.update(told | {"persist_constraints": list(self._viability.names)}, allow_val_change=True)
        for section in ("persist", "rollout", "train", "eval"):
            run.define_metric(f"{section}/*", step_metric="global_step")

    def _on_step(self) -> bool:
        if self._run is None:
            return True
        step = self.store.read(self.locals)
        margins = self._viability.margins(step.next_internal)
        self._violations += (margins < 0.0).sum(axis=0)
        for slot, info in enumerate(self.locals["infos"]):
            if "shield" in info:
                self._rows.append(self._row(slot, info, step.action[slot]))
        return super()._on_step()

    def _row(self, slot: int, info: dict[str, Any], action: Any) -> list[Any]:
        told = info["shield"]
        why = "a model failed" if told["failed"] else "no action passes" if told["infeasible"] else "not safe enough"
        return [
            self.num_timesteps,
            slot,
            str(np.asarray(told["proposed"]).round(3).tolist()),
            str(np.asarray(info.get("executed_action", action)).round(3).tolist()),
            self._viability.names[int(told["constraint"])],
            _number(told["margin"]),
            int(told["step"]) if told["step"] >= 0 else None,
            _number(told["value"]),
            _number(told["p_safe"]),
            why,
        ]

    def _on_rollout_end(self) -> None:
        if self._run is None:
            return
        if self.num_timesteps - self._logged_at >= self.log_freq:
            self._logged_at = self.num_timesteps
            self._log(self._plots())
        if self._films and self.num_timesteps - self._filmed_at >= self.video_freq:
            self._filmed_at = self.num_timesteps
            self._log(self._video())

    def _on_training_end(self) -> None:
        # rl-zoo3 calls this twice for the first callback.
        if self._run is None or self._finished == self.num_timesteps:
            return
        self._finished = self.num_timesteps
        self._log({**self._plots(), **(self._video() if self._films else {})})
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _log(self, what: dict[str, Any]) -> None:
        if what:
            self._run.log({**what, "global_step": self.num_timesteps})

    def _plots(self) -> dict[str, Any]:
        """
        :return: tables and plots by key
        """
        wandb, plot = self._wandb, self._wandb.plot
        names, counts = self._viability.names, self._violations.tolist()
        bars = wandb.Table(columns=["constraint", "steps"], data=[list(row) for row in zip(names, counts, strict=True)])
        charts = {"persist/violations_by_constraint": plot.bar(bars, "constraint", "steps", "steps in violation")}
        if self._rows:
            rows = [list(row) for row in self._rows]
            charts["persist/interventions"] = wandb.Table(columns=list(COLUMNS), data=rows)
        metrics = [each for each in iter_callbacks(self.locals["callback"]) if isinstance(each, MetricsCallback)]
        if metrics and metrics[0].recent:
            curve = survival_curve(list(metrics[0].recent))
            times = np.unique(np.rint(np.linspace(0.0, curve.last, 100)))
            alive = [curve.at(times).tolist()]
            title = f"the last {len(metrics[0].recent)} episodes"
            charts["persist/survival_curve"] = plot.line_series(times.tolist(), alive, ["alive"], title, "step")
            paid = with_intrinsic(metrics[0].recent)
            if paid:
                bonuses = bonus_names(paid)
                # Groups are of episodes that lasted alike, so they are the same for each.
                lines = [intrinsic_by_time_alive(paid, bonus) for bonus in (None, *bonuses)]
                lasted, means = [p["time_alive"] for p in lines[0]], [[p["mean"] for p in line] for line in lines]
                keys = ["intrinsic", *bonuses]
                charts["persist/intrinsic_by_time_alive"] = plot.line_series(lasted, means, keys, title, "step")
        calibration = self.state.bundle().get("calibration")
        if isinstance(calibration, Calibration) and calibration.made.any():
            charts["persist/calibration_plot"] = self._calibration_plot(calibration)
        return charts

    def _calibration_plot(self, calibration: Calibration) -> Any:
        made, kept = (counts.numpy().sum(axis=0) for counts in (calibration.made, calibration.kept))
        seen = made > 0
        realised = (kept[seen] / made[seen]).tolist()
        declared = [_number(p) for p in calibration.p_safe(EDGES[seen].astype(np.float32) + 1e-4)]
        return self._wandb.plot.line_series(
            EDGES[seen].tolist(),
            [realised, declared],
            ["stayed safe", "declared"],
            f"decisions near the boundary (threshold {calibration.threshold:.2f})",
            "critic's value",
        )

    def _video(self) -> dict[str, Any]:
        """
        :return: an episode of an environment of its own, by key; nothing if that cannot be had
        """
        try:
            film = self._film()
        except Exception as error:  # Drawing is anyone's code, and a training is worth more than a film.
            film, why = None, f"{type(error).__name__}: {error}"
        else:
            why = "the environment does not draw itself, was not made by gymnasium.make, or is in a wrapper of others"
        if film is None:
            self._films = False
            warnings.warn(f"TrackCallback logs no video: {why}", stacklevel=2)
            return {}
        return {"persist/video": self._wandb.Video(film, format="gif")}

    def _film(self) -> BytesIO | None:
        """
        :return: a GIF; None if the environment cannot be copied or drawn
        """
        # Late: it draws with matplotlib.
        from persist_sb3 import video

        if self._stage is None:
            env = self.training_env
            modes = env.get_attr("metadata", indices=0)[0].get("render_modes", ()) if env.has_attr("metadata") else ()
            if "rgb_array" in modes:
                self._stage = remake(env, innermost=video.FrameRecorder, render_mode="rgb_array")
        if self._stage is None:
            return None
        normalizer = unwrap_vec_normalize(self.training_env)
        stage = self._stage if normalizer is None else _normalized_alike(normalizer, self._stage)
        bind_all(stage, self.state, training=False)
        # Not by the film, which would set the generators that the training draws from.
        stage.seed(self.seed)
        film = video.film(self.model, stage, deterministic=True)
        fps = stage.get_attr("metadata")[0].get("render_fps", 30)
        with tempfile.TemporaryDirectory() as folder:
            return BytesIO(video.write(film, Path(folder, "episode.gif"), fps=fps).read_bytes())


def _layers(env: VecEnv) -> list[str]:
    """
    :param env: vectorised environments
    :return: names of this package's layers around and inside them, in their gymnasium form, the innermost first
    """
    outside: list[str] = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecLayerWrapper):
            outside.insert(0, type(env).__name__.removeprefix("Vec"))
        env = env.venv
    spec = env.get_attr("spec", indices=0)[0] if env.has_attr("spec") else None
    inside = [] if spec is None else [each.name for each in spec.additional_wrappers if _is_ours(each.entry_point)]
    return [*inside, *outside]


def _is_ours(entry_point: str) -> bool:
    return entry_point.startswith("persist_sb3.")


def _normalized_alike(normalizer: VecNormalize, venv: VecEnv) -> VecNormalize:
    """
    :param normalizer: of the training
    :param venv: other environments
    :return: these, with a copy of its statistics, which stand still
    """
    alike: VecNormalize = pickle.loads(pickle.dumps(normalizer))
    alike.set_venv(venv)
    alike.training = False
    alike.norm_reward = False
    return alike


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
