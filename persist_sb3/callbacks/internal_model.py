"""Learns how the internal variables follow from the state and the action."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.base import bind_all
from persist_sb3.callbacks.dynamics import DynamicsCallback
from persist_sb3.models.familiarity import Familiarity
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.spec import StateSpec


class InternalModelCallback(DynamicsCallback):
    """
    Trains an :class:`~persist_sb3.models.internal.InternalModel`. Logs under ``persist/internal_model/``: ``loss``; and
    of transitions before the model is trained on them ``nll``, ``disagreement``, and for each variable
    ``error_ratio/<name>`` (its root mean squared error over that of predicting no change: below 1 something was
    learned) and ``coverage/<name>`` (how often the 90 % interval holds the truth). Of their disagreement it keeps what
    is typical, for an :class:`~persist_sb3.wrappers.ActionShield` with ``caution``.

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

    name = "internal_model"

    def _make(self, spec: StateSpec) -> InternalModel:
        return InternalModel(spec, self.net_arch, self.members)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._familiarity = Familiarity(self.spec)
        self.state.register("familiarity", self._familiarity, shared=True)
        bind_all(self.training_env, self.state, training=True)

    def _tested(self, disagreement: NDArray[np.float32]) -> None:
        self._familiarity.measure(disagreement)

    def _successor(self, transitions: Transitions) -> NDArray[np.float32]:
        return transitions.next_internal.astype(np.float32)

    def _report(self, error: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        report: dict[str, float] = {}
        for name, ratio, coverage in zip(self.spec.viability.dims, error["ratio"], error["coverage"], strict=True):
            report |= {f"error_ratio/{name}": float(ratio), f"coverage/{name}": float(coverage)}
        return report
