"""Learns what the agent has seen, so that it is paid for what is new."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule

from persist_sb3.batch import Batch, stack, take, tree_map
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.intrinsic.rnd import RND
from persist_sb3.intrinsic.unit import BonusUnit
from persist_sb3.models.spec import StateSpec
from persist_sb3.paths import locate, parse_path
from persist_sb3.wrappers.remake import remake

Floats = NDArray[np.float32]

#: Environments whose observations are all learned from; of more, a share (Burda et al., 2019, appendix A.4).
FULL_RATE_ENVS = 32


class RNDCallback(LearningCallback):
    """
    Trains the :class:`~persist_sb3.intrinsic.RND` behind :class:`~persist_sb3.wrappers.RNDBonus` on the true next
    observations as they come, each once, ``min(1, 32 / num_envs)`` of them: with more data the predictor would learn
    too fast for the policy (Burda et al., ICLR 2019).

    Before the first bonus the statistics of the observations are measured in a random walk of ``learning_starts``
    steps. It takes place in a copy of the environment with random streams of its own, made from the environment's
    ``spec``, so training is the same with and without it. Where no copy can be made, the first transitions of training
    serve, and their bonus is 0.

    The bonus's unit, the running deviation of its discounted sum, and the factor that a schedule gives change between
    rollouts only, so that one rollout's advantages are in one unit. Logs under ``persist/rnd/``: ``loss``, ``novelty``
    (mean error), ``scale`` (the unit), ``factor``.

    :param net_arch: sizes of the hidden layers, of target and predictor
    :param features: length of what is predicted
    :param gamma: discount factor of the sum whose deviation is the unit
    :param schedule: factor on the layer's weight over training: a constant, ``"lin_1"`` (rl-zoo3's notation: linearly
        from 1 to 0), or a function of the remaining progress
    :param ignore: internal variables that the observation shows and novelty does not regard
    :param batch_size: observations in a gradient step, which is taken when so many have come
    :param gradient_steps: gradient steps on each batch
    :param learning_starts: length of the random walk
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights, batches and the random walk. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    name = "rnd"
    actor: RND
    learner: RND

    def __init__(
        self,
        net_arch: Sequence[int] = (64, 64),
        features: int = 64,
        gamma: float = 0.99,
        schedule: float | str | Schedule = 1.0,
        ignore: Sequence[str] = (),
        batch_size: int = 256,
        gradient_steps: int = 1,
        learning_starts: int = 1000,
        learning_rate: float = 3e-4,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            buffer_size=0,
            batch_size=batch_size,
            learning_starts=learning_starts,
            gradient_steps=gradient_steps,
            learning_rate=learning_rate,
            device=device,
            seed=seed,
            log_path=log_path,
            verbose=verbose,
        )
        if learning_starts < 2:
            raise ValueError(f"learning_starts={learning_starts} must be at least 2: a variance is measured")
        self.net_arch = net_arch
        self.features = features
        self.gamma = gamma
        self.schedule = schedule
        self.ignore = ignore
        #: Of the bonus.
        self.unit = BonusUnit(schedule, gamma)

    def _make(self, spec: StateSpec) -> RND:
        return RND(spec, self.net_arch, self.features, self._ignored(spec))

    def _ignored(self, spec: StateSpec) -> list[int]:
        shown: Mapping[str, str] = self.lookup("internal_entries")
        for name in self.ignore:
            if name not in shown:
                raise RuntimeError(
                    f"RNDCallback(ignore={list(self.ignore)}): the observation shows no internal variable {name!r}. "
                    f"It shows: {', '.join(shown) or 'none'}"
                )
        space = spec.observation_space
        entries = [locate(parse_path(shown[name])[1], space) for name in self.ignore]
        return [column for entry in entries for column in entry.columns(space)]

    def state_dict(self) -> dict[str, Any]:
        """
        :return: counters, optimiser, random generator, and the unit
        """
        return {**super().state_dict(), "unit": self.unit.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.unit.load_state_dict(state["unit"])

    def _on_training_start(self) -> None:
        if self.state.parts.get(f"{self.name}_training") is not self:
            self.unit.forget()
        super()._on_training_start()
        num_envs = self.training_env.num_envs
        self._rate = min(1.0, FULL_RATE_ENVS / num_envs)
        self._logged: dict[str, float] = {}
        self._fresh: list[Batch] = []
        self._fresh_count = 0
        self.unit.restart(num_envs)
        self._warm = bool(self.actor.standardizer.count > 0)
        if not self._warm:
            walk = self._random_walk()
            if walk is not None:
                self._warm_up(walk)
                self.unit.restart(0)

    def _random_walk(self) -> list[Floats] | None:
        """
        :return: what a random policy sees in a copy of the environment, ``(1, D)`` each; None if none can be made
        """
        env = remake(self.training_env, intervening=False)
        if env is None:
            return None
        # An environment may keep its spaces in its class: seeding them would seed the training's.
        space = copy.deepcopy(env.action_space)
        space.seed(int(self.generator.integers(2**31)))
        env.seed(int(self.generator.integers(2**31)))
        env.reset()
        walk = []
        for _ in range(self.learning_starts):
            observation, _, dones, infos = env.step(np.array([space.sample()]))
            last: Batch = stack([infos[0]["terminal_observation"]]) if dones[0] else observation
            walk.append(self.actor.encode(last))
        env.close()
        return walk

    def _warm_up(self, walk: list[Floats]) -> None:
        """
        Measure the observations' statistics and the first unit.

        :param walk: observations of a random policy, ``(n, D)`` each
        """
        self.learner.standardizer.update(self.tensor(np.concatenate(walk)))
        self._publish()
        for observation in walk:
            self.unit.measure(self.actor.error(observation))
        self._warm = True

    def _on_rollout_start(self) -> None:
        if self._warm:
            scale, factor = self.unit.scale.std, self.unit.at(self.model._current_progress_remaining)
            for model in (self.learner, self.actor):
                model.unit.fill_(factor / scale)
            self._logged = {"scale": scale, "factor": factor}

    def _on_step(self) -> bool:
        transitions = self.store.read(self.locals)
        observation, count = transitions.next_observation, len(transitions)
        if self._warm:
            self.unit.measure(self._novelty())
            # Drawn before the loss: what is left out costs nothing.
            if self._rate < 1.0:
                learned = np.flatnonzero(self.generator.random(count) < self._rate)
                observation, count = take(observation, learned), len(learned)
        self._fresh.append(observation)
        self._fresh_count += count
        if not self._warm and self._fresh_count >= self.learning_starts:
            self._warm_up([self.actor.encode(observation) for observation in self._take_fresh()])
        return super()._on_step()

    def _novelty(self) -> list[float]:
        try:
            return [info["persist"]["novelty"] for info in self.locals["infos"]]
        except KeyError as error:
            raise RuntimeError(
                "RNDCallback trains a model that no layer uses: wrap the environment in "
                "persist_sb3.wrappers.RNDBonus (or VecRNDBonus, around the vectorised environments)"
            ) from error

    def _take_fresh(self) -> list[Batch]:
        fresh, self._fresh, self._fresh_count = self._fresh, [], 0
        return fresh

    def _due(self) -> bool:
        if not self._warm or self._fresh_count < self.batch_size:
            return False
        fresh = tree_map(lambda *leaves: np.concatenate(leaves), *self._take_fresh())
        self._batch = self.tensor(self.actor.encode(fresh))
        self.learner.standardizer.update(self._batch)
        return True

    def _sample(self) -> torch.Tensor:
        return self._batch

    def _update(self, batch: torch.Tensor) -> Mapping[str, float]:
        loss = self.learner.backpropagate(batch)
        self.optimizer.step()
        return {"loss": loss}

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        novelty = self.unit.take_mean()
        if novelty is not None:
            self.logger.record("persist/rnd/novelty", novelty)
        for key, value in self._logged.items():
            self.logger.record(f"persist/rnd/{key}", value)
