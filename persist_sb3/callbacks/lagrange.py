"""Finds the weight with which the agent violates its constraints as often as it may."""

import os
from typing import Literal

import numpy as np

from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.lagrange import SCALES, Multiplier, PIDMultiplier, Scales


class LagrangeCallback(PersistCallback):
    """
    Asks for a rate of violations instead of a weight: measures ``info["cost"]`` between two updates and leads the
    weight of a layer by PID control (:class:`~persist_sb3.lagrange.PIDMultiplier`), between two rollouts.

    - ``scales="cost"``: the price in :class:`~persist_sb3.wrappers.CostPenalty`. PPO with it is PPO-Lagrangian.
    - ``scales="homeostat"``: the weight ``lambda_H`` of :class:`~persist_sb3.wrappers.HomeostatReward`. Its
      ``alive_bonus`` must leave no step inside the constraints a loss (``"auto"`` does), since a weight that rises
      would otherwise pay the agent to die.

    The multiplier and its controller are saved with the model and resumed. Logs under ``persist/lagrange/``:
    ``multiplier``, ``cost`` (as measured last), ``target``. The reward changes while it moves: normalise it
    (``VecNormalize``), or keep ``maximum`` small.

    :param target: cost that is allowed: mean a step, or mean an episode
    :param per: ``"episode"`` (sum of the costs of an episode; with death as the end, the share of episodes that end so)
        or ``"step"``
    :param scales: what the multiplier is the weight of: ``"cost"`` or ``"homeostat"``
    :param ki: multiplier per unit of excess and update
    :param kp: multiplier per unit of excess
    :param kd: multiplier per unit of increase of the cost
    :param smoothing: share of the past in the running means of excess and cost
    :param initial: the multiplier before the first update
    :param maximum: of the multiplier
    :param update_freq: least number of environment steps between two updates, which take place at ends of rollouts
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        target: float,
        per: Literal["episode", "step"] = "episode",
        scales: Scales = "cost",
        ki: float = 0.1,
        kp: float = 0.1,
        kd: float = 0.0,
        smoothing: float = 0.5,
        initial: float = 0.0,
        maximum: float = 100.0,
        update_freq: int = 2048,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        if not target >= 0.0:
            raise ValueError(f"target={target} must be at least 0: costs are")
        if per not in ("episode", "step"):
            raise ValueError(f"per={per!r} must be 'episode' or 'step'")
        if scales not in SCALES:
            raise ValueError(f"scales={scales!r} must be {' or '.join(map(repr, SCALES))}")
        if update_freq < 1:
            raise ValueError(f"update_freq={update_freq} must be at least 1")
        self.target = target
        self.per = per
        self.scales: Scales = scales
        self._settings = {"ki": ki, "kp": kp, "kd": kd, "smoothing": smoothing, "initial": initial, "maximum": maximum}
        PIDMultiplier(target, **self._settings)
        self.update_freq = update_freq

    def _on_training_start(self) -> None:
        self.controller = PIDMultiplier(self.target, **self._settings)
        self.state.register("lagrange_controller", self.controller)
        self.multiplier = Multiplier(self.scales)
        self.state.register("lagrange", self.multiplier, shared=True)
        self.multiplier.value.fill_(self.controller.value)
        # Of the episodes in progress; one that began earlier would be cut short.
        self._whole = np.full(self.training_env.num_envs, self.store.steps == 0)
        self._running = np.zeros(self.training_env.num_envs)
        self._begin()
        self._checked = False
        super()._on_training_start()

    def _begin(self) -> None:
        self._steps = self._episodes = 0
        self._step_cost = self._episode_cost = 0.0

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        if not self._checked:
            self._check_layers(set(step.terms))
        self._steps += len(step)
        self._step_cost += float(step.cost.sum())
        self._running += step.cost
        ended = step.done & self._whole
        self._episodes += int(ended.sum())
        self._episode_cost += float(self._running[ended].sum())
        self._running[step.done] = 0.0
        self._whole |= step.done
        return super()._on_step()

    def _check_layers(self, terms: set[str]) -> None:
        """
        :param terms: of the reward
        :raises RuntimeError: if the layer that the multiplier scales is not there
        """
        self._checked = True
        term, layer = {"cost": ("cost", "CostPenalty"), "homeostat": ("homeo", "HomeostatReward")}[self.scales]
        if term not in terms:
            raise RuntimeError(
                f"LagrangeCallback(scales={self.scales!r}) finds a weight that no layer has: wrap the environment in "
                f"persist_sb3.wrappers.{layer} (or Vec{layer}, around the vectorised environments)"
            )

    def _on_rollout_end(self) -> None:
        count, cost = (self._steps, self._step_cost) if self.per == "step" else (self._episodes, self._episode_cost)
        if self._steps < self.update_freq or not count:
            return
        self.multiplier.value.fill_(self.controller.update(cost / count))
        self._begin()
        self.logger.record("persist/lagrange/multiplier", self.controller.value)
        self.logger.record("persist/lagrange/cost", cost / count)
        self.logger.record("persist/lagrange/target", self.target)
