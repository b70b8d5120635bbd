"""Empowerment: how much the agent's actions decide what it will perceive."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.intrinsic.bonus import Moves
from persist_sb3.intrinsic.contrastive import SequenceCritic
from persist_sb3.intrinsic.sequences import SequenceSource
from persist_sb3.models.base import Model
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.prepared import Views
from persist_sb3.models.spec import Floats, StateSpec

Estimator = Literal["likelihood", "infonce", "logdet"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

_NOTHING = np.array(0.0)


class Empowerment(Model):
    """
    ``E(s)``, the information between the next ``k`` actions and the state they lead to (Klyubin, Polani & Nehaniv,
    "Empowerment: a universal agent-centric measure of control", CEC 2005; Mohamed & Rezende, NIPS 2015), as a network
    of the state. It is trained on what an estimator says of single states
    (:class:`~persist_sb3.callbacks.EmpowermentCallback`), so that a layer can ask it at every step.

    The source of actions is uniform, so it is information and not capacity, which would be the greatest over all
    sources.

    - ``"likelihood"``: :class:`~persist_sb3.intrinsic.likelihood.LikelihoodEstimator`
    - ``"infonce"``: :class:`~persist_sb3.intrinsic.contrastive.SequenceCritic`, learned
    - ``"logdet"``: :class:`~persist_sb3.intrinsic.gaussian.GaussianEstimator`, for Box actions alone

    :param spec: the environment's state and actions
    :param estimator: what is learned from. Default: ``"logdet"`` for Box actions; ``"likelihood"`` where all sequences
        are at most ``negatives``; else ``"infonce"``
    :param horizon: actions in a sequence, ``k``
    :param negatives: sequences that the one taken is told from, itself included, ``K``
    :param columns: of the state, which count as outcome. Default: all
    :param net_arch: sizes of the hidden layers, of the network and of InfoNCE's critic
    :param features: length of the critic's codes
    :raises TypeError: if ``"logdet"`` is asked for, and actions are not Box
    :raises ValueError: if a parameter is out of its range
    """

    unit: torch.Tensor
    updates: torch.Tensor

    def __init__(
        self,
        spec: StateSpec,
        estimator: Estimator | None = None,
        horizon: int = 2,
        negatives: int = 256,
        columns: Sequence[int] | None = None,
        net_arch: Sequence[int] = (64, 64),
        features: int = 64,
    ) -> None:
        columns = list(range(spec.state_dim)) if columns is None else [int(column) for column in columns]
        check_estimator(estimator, horizon, negatives)
        source = SequenceSource(spec, horizon)
        if estimator is None and spec.continuous:
            estimator = "logdet"
        elif estimator is None:
            estimator = "likelihood" if source.count <= negatives else "infonce"
        super().__init__(
            spec,
            estimator=estimator,
            horizon=horizon,
            negatives=negatives,
            columns=columns,
            net_arch=list(net_arch),
            features=features,
        )
        if estimator == "logdet" and not spec.continuous:
            raise TypeError(
                f"estimator='logdet' is for Box actions, and these are {spec.action_space}: use 'likelihood' or "
                "'infonce'"
            )
        self.source = source
        self.estimator = estimator
        self.negatives = negatives
        #: Whether a sequence is told from all there are, and not from as many as are drawn.
        self.complete = source.count <= negatives
        self.columns = columns
        #: No estimate is greater, in nats.
        self.bound = self._bound()
        #: What a bonus of 1 is worth, in nats.
        freedom = min(horizon * spec.action_dim, len(columns))
        self.full = float(freedom) if spec.continuous else max(source.entropy, 1e-6)
        self.standardizer = Standardizer(spec.state_dim)
        self.network = EnsembleMLP(1, [spec.state_dim, *net_arch, 1])
        self.critic: SequenceCritic | None = None
        if estimator == "infonce":
            self.critic = SequenceCritic(spec.state_dim, columns, horizon * spec.action_dim, net_arch, features)
        #: What turns an estimate into a bonus of weight 1; 0 until there is one.
        self.register_buffer("unit", torch.zeros(()))
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._taken = Views(self.updates)
        self._scale, self._most = np.array(self.full), np.array(self.bound)
        self._fast = NumpyEnsemble(self.network)
        self._fast_standardizer = self.standardizer.numpy()

    def _bound(self) -> float:
        if self.estimator == "logdet":
            return math.inf
        entropy, saturated = self.source.entropy, math.log(self.negatives)
        if self.complete:
            return entropy
        if saturated < entropy < math.inf:
            warnings.warn(
                f"negatives={self.negatives} are too few for horizon={self.source.horizon}: no estimate exceeds log K "
                f"= {saturated:.2f} nats, and sequences of {self.source.horizon} of {len(self.spec.actions)} actions "
                f"hold up to k log|A| = {entropy:.2f}. States of more empowerment will look alike: raise negatives to "
                f"{self.source.count:.0f}, or shorten the horizon",
                stacklevel=4,
            )
        return min(saturated, entropy) if self.estimator == "likelihood" else saturated

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :return: nats, ``(n,)``
        """
        value: torch.Tensor = self.full * self.network(self.standardizer(state))[0, :, 0]
        return value

    def backpropagate(self, state: torch.Tensor, value: torch.Tensor) -> float:
        """
        Set the network's gradients to those of the mean square of what :meth:`forward` gets wrong.

        :param state: ``(n, D)``
        :param value: what it should say, in nats, ``(n,)``
        :return: the mean square, in squares of :attr:`full`
        """
        target = value[:, None] / self.full
        return self.network.backpropagate(self.standardizer(state), lambda outputs: outputs[0] - target)

    def value(self, state: Floats) -> NDArray[np.float64]:
        """
        :meth:`forward` without torch, kept between 0 and :attr:`bound`; 0 before there was anything to learn.

        :param state: ``(n, D)``
        :return: nats, ``(n,)``
        """
        if not self._taken()[0]:
            return np.zeros(len(state))
        value = self._fast(self._fast_standardizer(state))[0, :, 0] * self._scale
        return value.clip(_NOTHING, self._most, out=value)


@dataclass(frozen=True)
class Control:
    """What :class:`Empowerment` says of the next state."""

    parts: ClassVar[tuple[str, ...]] = ("empowerment",)

    def score(self, parts: Mapping[str, Any], moves: Moves) -> NDArray[np.float64]:
        """
        :param parts: ``empowerment``
        :param moves: ``n`` transitions
        :return: nats, ``(n,)``
        """
        model: Empowerment = parts["empowerment"]
        return model.value(model.spec.encode(moves.next_observation, moves.next_internal))

    def unit(self, parts: Mapping[str, Any]) -> float:
        """
        :param parts: ``empowerment``
        :return: what a nat is multiplied with
        """
        return float(parts["empowerment"].unit)


def check_estimator(estimator: str | None, horizon: int, negatives: int) -> None:
    """
    :param estimator: one of :data:`ESTIMATORS`, or None
    :param horizon: at least 1
    :param negatives: at least 2
    :raises ValueError: naming the one that is not
    """
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} must be {', '.join(map(repr, ESTIMATORS))}")
    if horizon < 1:
        raise ValueError(f"horizon={horizon} must be at least 1")
    if negatives < 2:
        raise ValueError(f"negatives={negatives} must be at least 2: a sequence is told from others")
