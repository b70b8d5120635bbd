"""Learns how the observation follows from the state and the action."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import flatten
from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.dynamics import DynamicsCallback
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.paths import locate, parse_path


class WorldModelCallback(DynamicsCallback):
    """
    Trains a :class:`~persist_sb3.models.world.WorldModel`. Logs under ``persist/world_model/``: ``loss``; and of
    transitions before the model is trained on them ``nll``, ``disagreement``, ``error_ratio`` (the root mean squared
    error over that of predicting no change, averaged over the columns of the flattened observation that change: below 1
    something was learned) and, of the numbers among them, ``coverage`` (how often the 90 % interval holds the truth).

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

    name = "world_model"
    learner: WorldModel

    def _make(self, spec: StateSpec) -> WorldModel:
        return WorldModel(spec, self.net_arch, self.members, self._shown(spec))

    def _shown(self, spec: StateSpec) -> list[list[int]]:
        """
        :param spec: what the model is about
        :return: where the observation shows internal variables, unless as a one-hot code
        """
        entries: Mapping[str, str] = self.lookup("internal_entries")
        shown = []
        for variable, name in enumerate(spec.viability.dims):
            if name in entries:
                entry = locate(parse_path(entries[name])[1], spec.observation_space)
                columns = entry.columns(spec.observation_space)
                if len(columns) == 1:
                    shown.append([columns[0], variable])
        return shown

    def _update(self, batch: tuple[Transitions, NDArray[np.float32]]) -> Mapping[str, float]:
        transitions, _ = batch
        self.learner.compare(self.tensor(self._successor(transitions)), self.tensor(transitions.next_internal))
        return super()._update(batch)

    def _successor(self, transitions: Transitions) -> NDArray[np.float32]:
        return flatten(self.spec.observation_space, transitions.next_observation).astype(np.float32)

    def _report(self, error: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        changing = error["ratio"][np.isfinite(error["ratio"])]
        report = {"error_ratio": float(changing.mean())} if len(changing) else {}
        numeric = self.actor.heads.numeric
        if len(numeric):
            report["coverage"] = float(error["coverage"][numeric].mean())
        return report
