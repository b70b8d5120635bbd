"""Learns what can be told about the hidden internal variables."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.batch import tree_map
from persist_sb3.buffers import Transitions
from persist_sb3.buffers.transitions import concatenate
from persist_sb3.callbacks.dynamics import MAX_GRAD_NORM, NINETY_PERCENT
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.models.belief import GRUBelief
from persist_sb3.models.kalman import nees
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.paths import locate, parse_path
from persist_sb3.schedules import Period
from persist_sb3.wrappers.belief_state import KEY


class _Batch(NamedTuple):
    """Stretches of episodes: what was seen and done, and the truth."""

    observation: Floats  # flattened, (b, l + 1, m)
    action: Floats  # the one before each, encoded, (b, l + 1, A)
    memory: Floats  # before the first, (b, H)
    truth: Floats  # (b, l + 1, k)
    weight: Floats  # (b, l + 1)


class BeliefCallback(LearningCallback):
    """
    Trains the :class:`~persist_sb3.models.belief.GRUBelief` of a :class:`~persist_sb3.wrappers.BeliefState` on the true
    internal variables, ``info["internal"]``, which the agent does not see: stretches of episodes that cross no
    episode's end, backpropagated through time. A stretch begins with the memory that the model had there when it was
    lived, and the first ``burn_in`` steps only refresh that memory (Kapturowski et al., "Recurrent experience replay in
    distributed reinforcement learning", ICLR 2019).

    Logs under ``persist/belief/``: ``loss``; and of the beliefs that the agent was shown, before the model is trained
    on those steps, for each variable ``rmse/<name>`` and ``coverage/<name>`` (how often the 90 % interval holds the
    truth), and ``nees`` (the normalised estimation error squared, divided by the number of variables: 1 if the
    variances are right, above it if the model is too sure).

    :param memory: length of the recurrent state
    :param net_arch: sizes of the layers before it
    :param beta: between the likelihood (0) and the squared error (1), see
        :func:`~persist_sb3.models.prediction.beta_nll`
    :param length: steps in a stretch
    :param burn_in: steps at its beginning that are not learned from, unless the episode begins there
    :param buffer_size: transitions kept to learn from
    :param batch_size: stretches in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights and batches. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    name = KEY
    actor: GRUBelief
    learner: GRUBelief

    def __init__(
        self,
        memory: int = 64,
        net_arch: Sequence[int] = (64,),
        beta: float = 0.5,
        length: int = 64,
        burn_in: int = 8,
        buffer_size: int = 100_000,
        batch_size: int = 16,
        learning_starts: int = 1000,
        train_freq: Period = 8,
        gradient_steps: int = 1,
        learning_rate: float = 3e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
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
        )
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta={beta} must be in [0, 1]")
        if not 0 <= burn_in < length:
            raise ValueError(f"burn_in={burn_in} must be at least 0 and below length={length}")
        if min(memory, *net_arch, 1) < 1:
            raise ValueError(f"memory={memory} and net_arch={list(net_arch)} must be at least 1")
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} must be at least 1")
        self.memory = memory
        self.net_arch = net_arch
        self.beta = beta
        self.length = length
        self.burn_in = burn_in

    def _spec(self) -> StateSpec:
        try:
            part, space = self.lookup("belief_part"), self.lookup("belief_space")
        except RuntimeError as error:
            raise RuntimeError(
                "BeliefCallback trains a model that no layer uses: wrap the environment in "
                "persist_sb3.wrappers.BeliefState (or VecBeliefState, around the vectorised environments)"
            ) from error
        if part != KEY:
            raise RuntimeError(
                "BeliefCallback trains the belief of BeliefState(estimator='gru'), and that of this environment is "
                "'ekf': leave the callback out, or change the estimator"
            )
        return StateSpec(space, self.model.action_space, self.lookup("viability"))

    def _make(self, spec: StateSpec) -> GRUBelief:
        self._entries: Mapping[str, tuple[str, str]] = self.lookup("belief_entries")
        return GRUBelief(spec, list(self._entries), self.memory, self.net_arch)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        space: Any = self.model.observation_space
        # Means, and then variances.
        self._shown = [
            locate(parse_path(entries[which])[1], space) for which in (0, 1) for entries in self._entries.values()
        ]
        n = self.training_env.num_envs
        self._recurrent = np.zeros((n, self.actor.memory), dtype=np.float32)
        self._action = np.zeros((n, self.spec.action_dim), dtype=np.float32)
        # Of each transition in the store: memory and action before its first observation.
        self._before = np.zeros((0, self.actor.memory + self.spec.action_dim), dtype=np.float32)
        self._new: list[Transitions] = []
        self._tests: list[NDArray[np.float64]] = []

    def _on_step(self) -> bool:
        transitions = self.store.read(self.locals)
        self._note(transitions)
        self._new.append(transitions)
        if self.updates:
            self._test(transitions)
        if self._due():
            new = concatenate(self._new)
            self._new.clear()
            self.learner.measure(self.tensor(self._flat(new.observation)), self.tensor(self._truth(new.internal)))
        return super()._on_step()

    def _note(self, transitions: Transitions) -> None:
        """
        :param transitions: of this step; the memory goes along with them
        """
        n = len(transitions)
        if len(self._before) != self.store.capacity:
            self._before = np.zeros((self.store.capacity, self._before.shape[1]), dtype=np.float32)
        rows = np.arange(self.store.written - n, self.store.written) % len(self._before)
        self._before[rows] = np.concatenate([self._recurrent, self._action], axis=1)
        self._recurrent, _, _ = self.actor.advance(self._flat(transitions.observation), self._action, self._recurrent)
        self._action = self.spec.encode_action(transitions.executed_action)
        self._recurrent[transitions.done] = 0.0
        self._action[transitions.done] = 0.0

    def _test(self, transitions: Transitions) -> None:
        shown = np.stack([entry.read(transitions.next_observation) for entry in self._shown], axis=1)
        mean, variance = np.split(shown.astype(np.float64), 2, axis=1)
        truth = self._truth(transitions.next_internal)
        square = (truth - mean) ** 2
        consistency = nees(mean, variance, truth) / len(self._entries)
        self._tests.append(
            np.concatenate([square, square <= NINETY_PERCENT**2 * variance, consistency[:, None]], axis=1).mean(axis=0)
        )

    def _flat(self, observation: Any) -> Floats:
        return self.actor.seen(observation)

    def _truth(self, internal: NDArray[Any]) -> NDArray[Any]:
        return internal[..., self.actor.columns]

    def _sample(self) -> _Batch:
        transitions, valid, is_first, ages = self.store.sample_sequences(self.batch_size, self.length, self.generator)
        b, length = valid.shape
        rows = (self.store.written - 1 - ages[:, 0]) % len(self._before)
        memory, action = np.split(self._before[rows], [self.actor.memory], axis=1)
        first, following, done = (
            tree_map(lambda leaf: leaf.reshape(b * length, *leaf.shape[2:]), column)
            for column in (transitions.observation, transitions.next_observation, transitions.executed_action)
        )
        first, following, actions = (
            rows.reshape(b, length, -1)
            for rows in (self._flat(first), self._flat(following), self.spec.encode_action(done))
        )
        truth = self._truth(transitions.internal), self._truth(transitions.next_internal)
        weight = np.concatenate([np.ones((b, 1)), valid], axis=1)
        weight[~is_first, : self.burn_in] = 0.0
        return _Batch(
            np.concatenate([first[:, :1], following], axis=1),
            np.concatenate([action[:, None], actions], axis=1),
            memory,
            np.concatenate([truth[0][:, :1], truth[1]], axis=1),
            weight,
        )

    def _update(self, batch: _Batch) -> Mapping[str, float]:
        observation, action, memory, truth, weight = map(self.tensor, batch)
        loss = self.learner.loss(observation, action, memory, truth, weight, self.beta)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.learner.updates += 1
        return {"loss": float(loss.detach())}

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        if self._tests:
            *by_variable, consistency = np.mean(self._tests, axis=0)
            k = len(self._entries)
            for name, square, covered in zip(self._entries, by_variable[:k], by_variable[k:], strict=True):
                self.logger.record(f"persist/belief/rmse/{name}", float(np.sqrt(square)))
                self.logger.record(f"persist/belief/coverage/{name}", float(covered))
            self.logger.record("persist/belief/nees", float(consistency))
            self._tests.clear()
