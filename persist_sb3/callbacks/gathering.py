"""What a run shows beside scalars, gathered while it trains: the same for TensorBoard and for W&B."""

import pickle
import tempfile
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.base import PersistCallback, bind_all, iter_callbacks
from persist_sb3.callbacks.metrics import MetricsCallback
from persist_sb3.metrics import EpisodeRecord
from persist_sb3.shield.calibration import Calibration, Outcomes
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


class Gathering:
    """
    Keeps the last interventions and counts violations, finds what other callbacks have measured, and films episodes.

    :param callback: shows it; its training has begun
    :param viability: the constraints
    :param most: interventions that are kept
    :param seed: of the episode that is filmed, the same one each time
    """

    def __init__(self, callback: PersistCallback, viability: ViabilitySet, most: int, seed: int) -> None:
        self._callback = callback
        self._viability = viability
        self._seed = seed
        #: The last interventions, each with an entry a column of :data:`COLUMNS`.
        self.interventions: deque[list[Any]] = deque(maxlen=most)
        self._violations = np.zeros(len(viability.constraints), dtype=np.intp)
        self._stage: VecEnv | None = None
        self._films = True

    @property
    def layers(self) -> list[str]:
        """Of this package, around and inside the environments, in their gymnasium form, the innermost first."""
        return _layers(self._callback.training_env)

    @property
    def callbacks(self) -> list[str]:
        """Of this package, other than the one that shows this."""
        return [
            type(each).__name__
            for each in iter_callbacks(self._callback.locals["callback"])
            if isinstance(each, PersistCallback) and each is not self._callback
        ]

    def add(self, step: Transitions, infos: Sequence[dict[str, Any]]) -> None:
        """
        :param step: of the environments, ``n`` transitions
        :param infos: of the same, ``n``
        """
        self._violations += (self._viability.margins(step.next_internal) < 0.0).sum(axis=0)
        for slot, info in enumerate(infos):
            if "shield" in info:
                self.interventions.append(self._row(slot, info, step.action[slot]))

    def _row(self, slot: int, info: dict[str, Any], action: Any) -> list[Any]:
        told = info["shield"]
        why = "a model failed" if told["failed"] else "no action passes" if told["infeasible"] else "not safe enough"
        return [
            self._callback.num_timesteps,
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

    @property
    def violations(self) -> list[tuple[str, int]]:
        """Steps that violated each constraint since the training began."""
        return list(zip(self._viability.names, self._violations.tolist(), strict=True))

    @property
    def episodes(self) -> list[EpisodeRecord]:
        """The last ones, as the first :class:`MetricsCallback` has them; none without one."""
        for each in iter_callbacks(self._callback.locals["callback"]):
            if isinstance(each, MetricsCallback):
                return list(each.recent)
        return []

    @property
    def outcomes(self) -> Outcomes | None:
        """What :class:`CalibrationCallback` has measured; None before it has, or without one."""
        calibration = self._callback.state.bundle().get("calibration")
        return calibration.outcomes if isinstance(calibration, Calibration) else None

    def film(self) -> bytes | None:
        """
        Play an evaluation episode in an environment made for that, with the layers and models of the training.

        :return: it with its gauges, a GIF; None where the environments cannot be copied or drawn, which a warning says
            once
        """
        if not self._films:
            return None
        try:
            film = self._film()
        except Exception as error:  # Drawing is anyone's code, and a training is worth more than a film.
            film, why = None, f"{type(error).__name__}: {error}"
        else:
            why = "the environment does not draw itself, was not made by gymnasium.make, or is in a wrapper of others"
        if film is None:
            self._films = False
            warnings.warn(f"{type(self._callback).__name__} logs no video: {why}", stacklevel=2)
        return film

    def _film(self) -> bytes | None:
        # Late: it draws with matplotlib.
        from persist_sb3 import video

        env = self._callback.training_env
        if self._stage is None:
            modes = env.get_attr("metadata", indices=0)[0].get("render_modes", ()) if env.has_attr("metadata") else ()
            if "rgb_array" in modes:
                self._stage = remake(env, innermost=video.FrameRecorder, render_mode="rgb_array")
        if self._stage is None:
            return None
        normalizer = unwrap_vec_normalize(env)
        stage = self._stage if normalizer is None else _normalized_alike(normalizer, self._stage)
        bind_all(stage, self._callback.state, training=False)
        # Not by the film, which would set the generators that the training draws from.
        stage.seed(self._seed)
        film = video.film(self._callback.model, stage, deterministic=True)
        fps = stage.get_attr("metadata")[0].get("render_fps", 30)
        with tempfile.TemporaryDirectory() as folder:
            return video.write(film, Path(folder, "episode.gif"), fps=fps).read_bytes()

    def close(self) -> None:
        """Close the environment of the films."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None


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
