"""Learns the latent world model, from stretches of episodes."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule

from persist_sb3.batch import tree_map
from persist_sb3.buffers import Sequences, Transitions
from persist_sb3.buffers.transitions import as_batch
from persist_sb3.callbacks.dynamics import MAX_GRAD_NORM
from persist_sb3.callbacks.forecasts import Models
from persist_sb3.callbacks.world_model import WorldModelCallback
from persist_sb3.models.latent import Belief, LatentFilter, LatentModel
from persist_sb3.models.spec import StateSpec
from persist_sb3.schedules import Period
from persist_sb3.wrappers.adapters import lookup

#: A mixture of many samples is dear: one new transition in so many is a test.
TESTED = 3


class LatentWorldModelCallback(WorldModelCallback):
    """
    What ``WorldModelCallback(kind="latent")`` makes: trains a :class:`~persist_sb3.models.latent.LatentModel` on
    stretches of episodes. Logs as :class:`~persist_sb3.callbacks.WorldModelCallback` does, of the whole state and for a
    third of the transitions, each predicted from what went before in its episode. There is one network, so there is no
    ``disagreement``; ``divergence`` is the nats of a step that its latent variables tell and the past did not.

    :param sequence_length: steps in a stretch
    :param forgetting: how often, a step, the past is forgotten in training, in ``[0, 1)``: so the model learns to begin
        in the middle of an episode, as a shield lets it
    :param gru_size: size of the memory
    :param units: size of the hidden layers
    :param groups: categorical variables
    :param classes: of each
    :param beta: between the likelihood (0) and the squared error (1), see
        :func:`~persist_sb3.models.prediction.beta_nll`
    :param buffer_size: transitions kept to learn from
    :param batch_size: stretches in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights, batches and latent variables. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param kind: ``"latent"``
    :param schedule: factor on the weight of ``SurpriseBonus`` over training
    :param gamma: discount factor of the sum whose deviation is the unit of ``SurpriseBonus``
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        sequence_length: int = 32,
        forgetting: float = 0.1,
        gru_size: int = 128,
        units: int = 128,
        groups: int = 8,
        classes: int = 8,
        beta: float = 0.5,
        buffer_size: int = 100_000,
        batch_size: int = 16,
        learning_starts: int = 1000,
        train_freq: Period = 32,
        gradient_steps: int = 1,
        learning_rate: float = 1e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
        *,
        kind: Literal["latent"] = "latent",
        schedule: float | str | Schedule = 1.0,
        gamma: float = 0.99,
    ) -> None:
        super().__init__(
            (units,),
            1,
            beta,
            buffer_size,
            batch_size,
            learning_starts,
            train_freq,
            gradient_steps,
            learning_rate,
            device,
            seed,
            log_path,
            verbose,
            kind=kind,
            schedule=schedule,
            gamma=gamma,
        )
        sizes = {"gru_size": gru_size, "units": units, "groups": groups, "classes": classes}
        for name, size in {"sequence_length": sequence_length, **sizes}.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if not 0.0 <= forgetting < 1.0:
            raise ValueError(f"forgetting={forgetting} must be in [0, 1)")
        self.sequence_length = sequence_length
        self.forgetting = forgetting
        self.sizes = sizes

    def _make(self, spec: StateSpec) -> LatentModel:
        return LatentModel(spec, **self.sizes, shown=self._shown(spec))

    def _on_training_start(self) -> None:
        self._check_length()
        super()._on_training_start()
        self._filter = LatentFilter(self.actor, self.training_env.num_envs)
        self._begin = np.ones(self.training_env.num_envs, dtype=np.bool_)
        self._believed: list[Belief] = []

    def _check_length(self) -> None:
        try:
            limit = getattr(lookup(self.training_env, "spec"), "max_episode_steps", None)
        except AttributeError:
            limit = None
        if limit is not None and self.sequence_length > limit:
            raise RuntimeError(
                f"sequence_length={self.sequence_length} is longer than any episode: the environment's "
                f"max_episode_steps is {limit}"
            )
        kept = self.buffer_size // self.training_env.num_envs
        if self.sequence_length > kept:
            raise RuntimeError(
                f"sequence_length={self.sequence_length} is longer than what is kept: buffer_size={self.buffer_size} "
                f"holds {kept} steps of each of {self.training_env.num_envs} environments"
            )

    def _on_step(self) -> bool:
        new = self.store.read(self.locals)
        state, action = self._inputs(new)
        begin = np.flatnonzero(self._begin)
        if len(begin):
            self._filter.begin(begin, state[begin])
        self._believed.append(self._filter.belief)
        going_on = super()._on_step()
        self._filter.follow(state, action, self._successor(new))
        self._begin = new.done
        return going_on

    def _forecasters(self) -> Models:
        return self.actor, None, self._filter.belief

    def _test(self, state: NDArray[np.float32], action: NDArray[np.float32], successor: NDArray[np.float32]) -> None:
        if self.updates:
            belief = Belief(*map(np.concatenate, zip(*self._believed, strict=True)))
            rows = np.arange(0, len(state), TESTED)
            self._tests.add(state[rows], action[rows], successor[rows], belief.rows(rows))
        self._believed.clear()

    def _successor(self, transitions: Transitions) -> NDArray[np.float32]:
        return self.spec.encode(transitions.next_observation, transitions.next_internal)

    def _sample(self) -> Any:
        return self.store.sample_sequences(self.batch_size, self.sequence_length, self.generator)

    def _update(self, batch: Any) -> Mapping[str, float]:
        assert isinstance(batch, Sequences)
        size = batch.valid.shape
        rows = Transitions(**tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), as_batch(batch.transitions)))
        state, action = self._inputs(rows)
        successor = self._successor(rows)
        seen = self.tensor(successor[:, : self.spec.observation_dim]), self.tensor(rows.next_internal)
        self.learner.compare(*seen)
        states = np.concatenate([state.reshape(*size, -1)[:, :1], successor.reshape(*size, -1)], axis=1)
        gumbel = self.generator.gumbel(size=(size[0], size[1] + 1, self.sizes["groups"], self.sizes["classes"]))
        flags = batch.valid, self.generator.random(size) < self.forgetting
        valid, forget = (torch.as_tensor(flag, device=seen[0].device) for flag in flags)
        losses = self.learner.loss(
            self.tensor(states), self.tensor(action.reshape(*size, -1)), valid, forget, self.tensor(gumbel), self.beta
        )
        self.optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.learner.updates += 1
        return {"loss": float(losses.total.detach()), "divergence": float(losses.divergence)}
