"""What the callbacks of the internal model and the world model share: bootstrap, loss, and tests on what is new."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.buffers import Transitions
from persist_sb3.buffers.transitions import concatenate
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.models.prediction import PredictiveModel
from persist_sb3.schedules import Period

#: Greatest norm of a gradient: what had never changed is far off its scale when it first does.
MAX_GRAD_NORM = 10.0

#: A normal variable lies within so many standard deviations of its mean with a probability of 90 %.
NINETY_PERCENT = 1.6448536


class DynamicsCallback(LearningCallback):
    """
    Base of the callbacks that train a :class:`~persist_sb3.models.dynamics.DynamicsModel` on executed actions and true
    successors. Every member learns from a bootstrap sample of its own: each transition counts for it a number of times
    that is drawn once, from a Poisson distribution (Oza & Russell, AISTATS 2001).

    New transitions are a test before they are anything else: what is logged besides ``loss`` is measured on those that
    the model has not been trained on yet.

    :param net_arch: sizes of the hidden layers
    :param members: networks in the ensemble
    :param beta: between the likelihood (0) and the squared error (1), see
        :func:`~persist_sb3.models.prediction.beta_nll`
    :param buffer_size: transitions kept to learn from
    :param batch_size: transitions in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights, batches and bootstrap. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    actor: Any
    learner: Any

    def __init__(
        self,
        net_arch: Sequence[int] = (128, 128),
        members: int = 5,
        beta: float = 0.5,
        buffer_size: int = 100_000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_freq: Period = 4,
        gradient_steps: int = 1,
        learning_rate: float = 1e-3,
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
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} must be at least 1")
        self.net_arch = net_arch
        self.members = members
        self.beta = beta

    @abstractmethod
    def _successor(self, transitions: Transitions) -> NDArray[np.float32]:
        """
        :param transitions: ``(n, ...)``
        :return: what the model predicts: a part of ``s'``, ``(n, m)``
        """

    @abstractmethod
    def _report(self, error: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """
        :param error: by column, ``(m,)``: ``ratio`` of the root mean squared error to that of "nothing changes", and
            ``coverage`` of the 90 % interval; NaN where a column never changed
        :return: what to log, by name
        """

    def _on_training_start(self) -> None:
        super()._on_training_start()
        # From a stream of its own, which a resumed training draws again.
        self._counts = self.generator.spawn(1)[0].poisson(1.0, (self.buffer_size, self.members)).astype(np.float32)
        self._new: list[Transitions] = []
        self._tests = _Tests(self.actor)

    def _on_step(self) -> bool:
        self._new.append(self.store.read(self.locals))
        if self._due():
            new = concatenate(self._new)
            self._new.clear()
            state, action, successor = *self._inputs(new), self._successor(new)
            self._test(state, action, successor)
            self.learner.measure(*map(self.tensor, (state, action, successor)))
        return super()._on_step()

    def _test(self, state: NDArray[np.float32], action: NDArray[np.float32], successor: NDArray[np.float32]) -> None:
        """
        Before the model learns from them, test it on the transitions since it was last called.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param successor: ``(n, m)``
        """
        if self.updates:
            disagreement = self._tests.add(state, action, successor)
            if disagreement is not None:
                self._tested(disagreement)

    def _tested(self, disagreement: NDArray[np.float32]) -> None:
        """
        :param disagreement: of the members, on transitions that the model has not been trained on, ``(n,)``
        """

    def _inputs(self, transitions: Transitions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state = self.spec.encode(transitions.observation, transitions.internal)
        return state, self.spec.encode_action(transitions.executed_action)

    def _sample(self) -> tuple[Transitions, NDArray[np.float32]]:
        ages = self.generator.integers(len(self.store), size=self.batch_size)
        serials = self.store.written - 1 - ages
        return self.store.recall(ages), self._counts[serials % self.buffer_size]

    def _update(self, batch: Any) -> Mapping[str, float]:
        transitions, counts = batch
        state, action = map(self.tensor, self._inputs(transitions))
        target = self.tensor(self._successor(transitions))
        loss = self.learner.loss(state, action, target, self.tensor(counts.T), self.beta)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.learner.updates += 1
        return {"loss": float(loss.detach()) / self.members}

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        if self._tests.rows:
            for key, value in (*self._tests.overall().items(), *self._report(self._tests.by_column()).items()):
                self.logger.record(f"persist/{self.name}/{key}", value)
            self._tests = _Tests(self.actor)


class _Tests:
    """
    Sums of errors on transitions that a model was not trained on.

    :param model: predicts, in NumPy
    """

    def __init__(self, model: PredictiveModel) -> None:
        self._model = model
        self.rows = 0
        self._nll = 0.0
        #: None as long as no model had members that could disagree.
        self._disagreement: float | None = None
        self._squares = np.zeros((3, model.heads.width))

    def add(
        self,
        state: NDArray[np.float32],
        action: NDArray[np.float32],
        successor: NDArray[np.float32],
        *belief: Any,
    ) -> NDArray[np.float32] | None:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param successor: ``(n, m)``
        :param belief: what the model takes besides
        :return: how much the members disagree, ``(n,)``; None if the model is one of a kind
        """
        mean, var, nll, disagreement = self._model.assess(state, action, successor, *belief)
        centre = mean.mean(axis=0)
        error = np.square(successor - centre)
        spread = (var + np.square(mean - centre)).mean(axis=0)  # the mixture's variance
        covered = error <= NINETY_PERCENT**2 * spread
        still = np.square(successor - state[:, self._model.part])
        self._squares += np.stack([error, still, covered]).sum(axis=1, dtype=np.float64)
        self._nll += float(nll.sum())
        if disagreement is not None:
            self._disagreement = (self._disagreement or 0.0) + float(disagreement.sum())
        self.rows += len(state)
        return disagreement

    def overall(self) -> dict[str, float]:
        """
        :return: means over the transitions
        """
        overall = {"nll": self._nll / self.rows}
        if self._disagreement is not None:
            overall["disagreement"] = self._disagreement / self.rows
        return overall

    def by_column(self) -> dict[str, NDArray[np.float64]]:
        """
        :return: what :meth:`DynamicsCallback._report` takes
        """
        error, still, covered = self._squares
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(still > 0.0, np.sqrt(error / still), np.nan)
        return {"ratio": ratio, "coverage": covered / self.rows}
