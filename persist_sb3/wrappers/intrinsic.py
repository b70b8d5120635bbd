"""What every layer that adds an intrinsic reward does with it."""

import math
from abc import abstractmethod
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from persist_sb3.infos import Entry, Infos, MissingInfoError, Path
from persist_sb3.intrinsic.bonus import Bonus
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper
from persist_sb3.wrappers.internal_state import NonFiniteError
from persist_sb3.wrappers.layer import Layer, Lookup, Step

TERM = "intrinsic"


class Paid(NamedTuple):
    """
    What a layer pays.

    :param layer: its class
    :param weight: ``lambda_I``
    :param bonus: for what; None if that depends on more than a single transition
    """

    layer: str
    weight: float
    bonus: Bonus | None


class BonusLayer(Layer):
    """
    Base of the layers that add ``weight * bonus`` to the reward and report it as ``info["reward_terms"]["intrinsic"]``;
    where several lie around one environment their bonuses add up there. ``info["bonuses"]`` has what each layer paid,
    by its name in lower case without ``Bonus`` (a second one of a class gets a number). The bonus is part of the reward
    of its own step, so it enters returns, advantages and replay buffers as the task reward does.

    :param weight: ``lambda_I``, at least 0
    :raises ValueError: if it is out of its range
    """

    _spec: StateSpec
    #: What it pays for, if that is a function of single transitions; a replay buffer can then pay it anew.
    pays: Bonus | None = None

    def __init__(self, weight: float = 1.0) -> None:
        if not (np.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"weight={weight} must be a finite number, at least 0")
        self.weight = weight

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._alone: bool | None = None
        self._scores: list[Entry] = []

    @property
    def paid(self) -> Paid:
        """What it pays."""
        return Paid(type(self).__name__.removesuffix("Layer"), self.weight, self.pays)

    def check_observation(self, seen: StateSpec, learned: StateSpec) -> None:
        """
        :param seen: what this layer sees
        :param learned: what the model behind the bonus was made for: what the policy sees
        :raises RuntimeError: if the observations differ
        """
        here, there = (spec.fingerprint["observation"] for spec in (seen, learned))
        if here != there:
            name = self.paid.layer
            raise RuntimeError(
                f"{name} sees the observation {here}, and the policy {there}: place {name} outside every layer that "
                "changes the observation"
            )

    @abstractmethod
    def bonus(self, step: Step) -> NDArray[np.float64]:
        """
        :param step: the transition
        :return: what it is worth, before :attr:`weight`, ``(n,)``; ignored where ``live`` is False
        """

    def after(self, step: Step) -> NDArray[np.float64]:
        reward = super().after(step)
        weight = self.demands.intr_factor * self.weight
        bonus = self.bonus(step)
        bonus = step.where_live(bonus if weight == 1.0 else weight * bonus)
        # Of a few numbers, Python's own sum is the quickest.
        if not math.isfinite(sum(bonus.tolist())) and not np.isfinite(bonus).all():
            slot = int(np.argmin(np.isfinite(bonus)))
            raise NonFiniteError(
                f"the intrinsic reward ({type(self).__name__}) of environment {slot} is {bonus[slot]} at step "
                f"{self.age(slot)} of its episode: either what the environment returned there is not finite "
                "(InternalState checks that unless check_finite=False), or the model behind the bonus has diverged: "
                "lower its learning_rate"
            )
        if self._alone is None:
            self._meet(step.infos)
        self._scores += ("reward_terms", TERM, bonus, not self._alone), ("bonuses", self._name, bonus, False)
        step.infos.publish_entries(self.everyone, self._scores)
        self._scores.clear()
        return reward + bonus

    def next_state(self, step: Step, internal: NDArray[np.float64]) -> Floats:
        """
        :param step: the transition
        :param internal: what it reports as internal variables, ``(n, d)``
        :return: ``s'``, encoded once for all layers that see the same; not to be changed in place, ``(n, D)``
        """
        infos, observation = step.infos, step.next_observation
        made = infos.made
        if made is None or made[0] is not observation or made[1] is not internal:
            made = infos.made = observation, internal, self._spec.encode(observation, internal)
        return made[2]

    def tell(self, name: str, scores: NDArray[np.float64]) -> None:
        """
        To be called by :meth:`bonus`.

        :param name: what is published beside the bonus, as ``info["persist"][name]``
        :param scores: ``(n,)``
        """
        self._scores.append(("persist", name, scores, False))

    def _meet(self, infos: Infos) -> None:
        """
        :param infos: of the first step: they tell which other layers pay bonuses
        """
        self._alone = not self._told(infos, ("reward_terms", TERM))
        own = self._name = self.paid.layer.removesuffix("Bonus").lower()
        numbers = count(2)
        while self._told(infos, ("bonuses", self._name)):
            self._name = f"{own}_{next(numbers)}"

    def _told(self, infos: Infos, path: Path) -> bool:
        """
        :param infos: of the step
        :param path: of an entry
        :return: whether a layer below has written it
        """
        try:
            infos.column(path, self.everyone)
        except MissingInfoError:
            return False
        return True


class BonusWrapper(LayerWrapper):
    """Base of the layers' ``gymnasium.Env`` form."""

    layer: BonusLayer

    @property
    def paid_bonuses(self) -> list[Paid]:
        """What this layer pays, and every one below."""
        below = self.env.get_wrapper_attr("paid_bonuses") if self.env.has_wrapper_attr("paid_bonuses") else []
        return [*below, self.layer.paid]


def find_paid(env: VecEnv) -> list[Paid]:
    """
    :param env: vectorised environments
    :return: what the layers around and inside them pay
    """
    outer = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecLayerWrapper) and isinstance(env.layer, BonusLayer):
            outer.append(env.layer.paid)
        env = env.venv
    inner: list[Paid] = []
    if env.has_attr("paid_bonuses"):
        inner = env.get_attr("paid_bonuses", indices=0)[0]
    return [*inner, *reversed(outer)]
