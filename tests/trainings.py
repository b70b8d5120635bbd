"""Short trainings of everything that learns beside the policy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from persist_sb3.callbacks import (
    BeliefCallback,
    CalibrationCallback,
    EmpowermentCallback,
    InternalModelCallback,
    PersistCallback,
    RNDCallback,
    SafetyNetworkCallback,
    ViabilityCallback,
    WorldModelCallback,
)
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.wrappers import (
    VecActionShield,
    VecBeliefState,
    VecEmpowermentBonus,
    VecInternalState,
    VecPartialObservation,
    VecRNDBonus,
    VecSurpriseBonus,
)
from tests.toys import Walker

LIMITS: dict[str, Any] = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.2"],
    "mu": [0.8, 0.5],
    "low": [0.0, 0.0],
    "high": [1.0, 1.0],
    "append": True,
}
SOON: dict[str, Any] = {"learning_starts": 32, "batch_size": 16, "train_freq": 2}
CRITIC = SOON | {"net_arch": [16]}
ENSEMBLE = CRITIC | {"members": 2}
LATENT: dict[str, Any] = {
    **SOON,
    "batch_size": 4,
    "kind": "latent",
    "sequence_length": 6,
    "gru_size": 16,
    "units": 16,
    "groups": 2,
    "classes": 4,
}
BELIEF: dict[str, Any] = {**CRITIC, "memory": 8, "length": 8, "burn_in": 2}
EMPOWERMENT: dict[str, Any] = {**CRITIC, "learning_starts": 8, "min_updates": 2, "warm_up": 2, "negatives": 9}

Layers = Callable[[VecEnv], VecEnv]


@dataclass(frozen=True)
class Training:
    """
    Environments, and callbacks that learn in them.

    :param callbacks: makes them, to train on a device
    :param layers: around the environments
    :param action: kind of the actions
    :param watches: whether the policy would learn the same without the callbacks and layers
    """

    callbacks: Callable[[str], list[PersistCallback]]
    layers: Layers = field(default=lambda env: env)
    action: str = "discrete"
    watches: bool = False

    def env(self, observation: str = "box") -> VecEnv:
        """
        :param observation: kind of the observations
        :return: four environments
        """
        walkers = DummyVecEnv([partial(Walker, observation, self.action)] * 4)
        return self.layers(VecInternalState(walkers, **LIMITS))

    def learners(self, device: str) -> tuple[list[Any], list[LearningCallback]]:
        """
        :param device: where they train
        :return: all callbacks, and those of them that train a model
        """
        callbacks = self.callbacks(device)
        return callbacks, [callback for callback in callbacks if isinstance(callback, LearningCallback)]


def _shield(env: VecEnv, **more: Any) -> VecEnv:
    return VecActionShield(env, min_updates=4, **more)


def _empowerment(estimator: Any) -> Callable[[str], list[PersistCallback]]:
    return lambda device: [
        WorldModelCallback(**ENSEMBLE, device=device),
        EmpowermentCallback(estimator=estimator, horizon=1, **EMPOWERMENT, device=device),
    ]


TRAININGS: dict[str, Training] = {
    "dynamics": Training(
        lambda device: [
            InternalModelCallback(**ENSEMBLE, device=device),
            WorldModelCallback(**ENSEMBLE, device=device),
        ],
        watches=True,
    ),
    "dynamics, box": Training(lambda device: [WorldModelCallback(**ENSEMBLE, device=device)], action="box"),
    "latent": Training(lambda device: [WorldModelCallback(**LATENT, device=device)], watches=True),
    "surprise": Training(
        lambda device: [WorldModelCallback(**ENSEMBLE, device=device)], partial(VecSurpriseBonus, weight=0.5)
    ),
    "viability": Training(lambda device: [ViabilityCallback(**CRITIC, near_boundary=0.5, device=device)], watches=True),
    "viability, box": Training(
        lambda device: [ViabilityCallback(**CRITIC, objective="classifier", device=device)], _shield, action="box"
    ),
    "calibration": Training(
        lambda device: [
            ViabilityCallback(**CRITIC, device=device),
            CalibrationCallback(min_updates=4, fit_freq=2),
        ],
        _shield,
    ),
    "safety": Training(
        lambda device: [
            ViabilityCallback(**CRITIC, device=device),
            InternalModelCallback(**ENSEMBLE, device=device),
            WorldModelCallback(**ENSEMBLE, device=device),
            SafetyNetworkCallback(**CRITIC, min_updates=4, device=device),
        ],
        partial(_shield, mode="amortised", horizon=2, rollouts=2),
    ),
    "belief": Training(
        lambda device: [BeliefCallback(**BELIEF, device=device)],
        lambda env: VecBeliefState(VecPartialObservation(env, noise={"battery": 0.05}, dropout={"battery": 0.5})),
    ),
    "rnd": Training(
        lambda device: [
            RNDCallback(net_arch=[16], features=8, learning_starts=20, batch_size=16, device=device),
        ],
        partial(VecRNDBonus, weight=0.5),
    ),
    "likelihood": Training(_empowerment("likelihood"), partial(VecEmpowermentBonus, weight=0.5)),
    "infonce": Training(_empowerment("infonce"), partial(VecEmpowermentBonus, weight=0.5)),
    "logdet": Training(_empowerment("logdet"), partial(VecEmpowermentBonus, weight=0.5), action="box"),
}


def play(path: str | Path, name: str, device: str, steps: int = 80) -> tuple[NDArray[Any], NDArray[Any]]:
    """
    Act without learning, as a replay does.

    :param path: of a saved PPO
    :param name: key of :data:`TRAININGS`, what it was trained in
    :param device: of the policy
    :param steps: how many
    :return: what was seen, and what was executed, ``(steps, 4, ...)`` both
    """
    env = TRAININGS[name].env()
    model = PPO.load(path, device=device)
    env.seed(5)
    observation: Any = env.reset()
    seen, done = [], []
    for _ in range(steps):
        action, _ = model.predict(observation, deterministic=True)
        observation, _, _, infos = env.step(action)
        seen.append(observation)
        done.append([info.get("executed_action", own) for info, own in zip(infos, action, strict=True)])
    return np.array(seen), np.array(done)
