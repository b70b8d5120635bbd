"""What every callback that trains a model does: collect transitions, update on a schedule, log, resume."""

import copy
import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import update_learning_rate

from persist_sb3.callbacks.base import PersistCallback
from persist_sb3.devices import CPU, check_device, find_device
from persist_sb3.models.base import Model
from persist_sb3.models.spec import StateSpec
from persist_sb3.schedules import Period, make_period, make_schedule
from persist_sb3.shield.lookahead import GUARDING
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers.layer import declared


class LearningCallback(PersistCallback):
    """
    Base of the callbacks that train a model while the agent learns. A subclass sets :attr:`name`, makes its model in
    :meth:`_make` and updates it in :meth:`_update`; the model is shared with the layers under that name.

    On another device than the CPU the learner is a copy there, and the layers' model follows it after each training;
    on the CPU they are one. Initial weights and batches are drawn on the CPU, so they do not depend on the device.

    :param buffer_size: transitions kept to learn from; 0 for a subclass that keeps its own
    :param batch_size: transitions in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings; or, by the time step from which they
        hold, several of these: ``{0: 1, 25_000: 4}``
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam: a number, ``"lin_0.001"`` (rl-zoo3's notation: linearly from that to 0), or a
        function of the remaining progress
    :param device: where to train: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ..., or ``"auto"`` (CUDA if there is one). Where
        there is none, ``"cuda"`` is refused when training starts
    :param seed: of initial weights and batches. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range, or there is no such device
    """

    #: Of the shared part, and of what is logged.
    name: str

    def __init__(
        self,
        buffer_size: int = 100_000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_freq: Period = 4,
        gradient_steps: int = 1,
        learning_rate: float | str | Schedule = 1e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_path, verbose)
        for key, value in (("batch_size", batch_size), ("gradient_steps", gradient_steps)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        for key, value in (("buffer_size", buffer_size), ("learning_starts", learning_starts)):
            if value < 0:
                raise ValueError(f"{key}={value} must not be negative")
        self._period = make_period(train_freq, "train_freq")
        self._learning_rate = make_schedule(learning_rate)
        if not self._learning_rate(1.0) > 0.0:
            raise ValueError(f"learning_rate={learning_rate} must be positive")
        check_device(device)
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.train_freq = train_freq
        self.gradient_steps = gradient_steps
        self.learning_rate = learning_rate
        self.device = device
        self.seed = seed
        #: Gradient steps taken, in the whole run.
        self.updates = 0
        self._losses: defaultdict[str, list[float]] = defaultdict(list)

    @abstractmethod
    def _make(self, spec: StateSpec) -> Model:
        """
        :param spec: what the model is about
        :return: a new model; PyTorch's generator is seeded meanwhile
        """

    @abstractmethod
    def _update(self, batch: Any) -> Mapping[str, float]:
        """
        Take one gradient step on :attr:`learner`.

        :param batch: what :meth:`_sample` returned
        :return: what to log, by name
        """

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        """
        :return: what the optimiser changes
        """
        return self.learner.parameters()

    def _turn(self) -> bool:
        """
        :return: whether this is a step that ``train_freq`` names
        """
        return self.store.steps % self._period(self.model.num_timesteps) == 0

    def _due(self) -> bool:
        """
        :return: whether to train now
        """
        return self._turn() and len(self.store) >= max(self.learning_starts, 1)

    def _sample(self) -> Any:
        """
        :return: a batch to learn from: transitions, unless a subclass learns from something else
        """
        return self.store.sample(self.batch_size, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: counters, optimiser and random generator
        """
        return {
            "updates": self.updates,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.bit_generator.state = state["generator"]

    def _on_training_start(self) -> None:
        device = self._find_device()
        self.spec = self._spec()
        seed = self.model.seed if self.seed is None else self.seed
        self.generator = np.random.default_rng(seed)
        with seeded(int(self.generator.integers(2**31))):
            self.actor = self._make(self.spec)
        self.state.register(self.name, self.actor, shared=True)
        self.learner = self.actor if device == CPU else copy.deepcopy(self.actor).to(device)
        self.optimizer = torch.optim.Adam(self._parameters(), lr=self._learning_rate(1.0), fused=True)
        self.state.register(f"{self.name}_training", self)
        self.store.reserve(self.buffer_size)
        super()._on_training_start()

    def _find_device(self) -> torch.device:
        try:
            return find_device(self.device)
        except RuntimeError as error:
            raise RuntimeError(f"{type(self).__name__}: {error}") from error

    def _spec(self) -> StateSpec:
        observation_space = self.model.observation_space
        assert isinstance(observation_space, spaces.Space)
        try:
            return StateSpec(observation_space, self.model.action_space, self._constraints())
        except ValueError as error:
            raise RuntimeError(f"{type(self).__name__}: {error}") from error

    def _constraints(self) -> ViabilitySet:
        """
        :return: the constraints that the model is about
        """
        guarded: ViabilitySet | None = declared(self.lookup, "guarded", None) if self.name in GUARDING else None
        return self.lookup("viability") if guarded is None else guarded

    def _on_step(self) -> bool:
        self.store.read(self.locals)
        if self._due():
            update_learning_rate(self.optimizer, self._learning_rate(self.model._current_progress_remaining))
            for _ in range(self.gradient_steps):
                for key, value in self._update(self._sample()).items():
                    self._losses[key].append(value)
                self.updates += 1
            self._publish()
        return super()._on_step()

    def _publish(self) -> None:
        if self.learner is not self.actor:
            self.actor.load_state_dict(self.learner.state_dict())

    def _on_rollout_end(self) -> None:
        for key, values in self._losses.items():
            if values:
                self.logger.record(f"persist/{self.name}/{key}", float(np.mean(values)))
                values.clear()

    def tensor(self, array: Any) -> torch.Tensor:
        """
        :param array: anything NumPy makes an array of
        :return: it in float32, on the learner's device
        """
        device = next(self.learner.parameters()).device
        return torch.as_tensor(np.asarray(array, dtype=np.float32), device=device)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Seed PyTorch's generator of the CPU, where models are made, and put it back afterwards, so that training is the same
    with and without the model. Generators of other devices are left alone: to ask for their state would start CUDA in
    runs that do not use it.

    :param seed: of the generator inside
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
