"""Empowerment from what the models say is likely: no critic has to be learned."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from persist_sb3.intrinsic.outcomes import Outcomes, Probabilistic, foresee
from persist_sb3.models.imagination import Dynamics
from persist_sb3.models.spec import Floats

Doubles = NDArray[np.float64]

#: Share of the marginal in each sequence's likelihood: no outcome, however odd, costs more than its logarithm.
SHARE = 0.05

#: Least probability of a category.
LEAST = 1e-6


class Densities(NamedTuple):
    """
    Likelihoods of outcomes ``t``, each in the form ``exp(sum_j square_j t_j^2 + linear_j t_j + constant)``: products of
    Gaussians, categorical and Bernoulli distributions, ``c`` of them for each of ``b`` states.
    """

    square: Doubles  # (b, c, m)
    linear: Doubles  # (b, c, m)
    constant: Doubles  # (b, c)

    def log(self, outcome: Doubles) -> Doubles:
        """
        :param outcome: ``(b, q, m)``
        :return: ``(b, q, c)``
        """
        quadratic = np.square(outcome) @ self.square.transpose(0, 2, 1)
        return quadratic + outcome @ self.linear.transpose(0, 2, 1) + self.constant[:, None]


class LikelihoodEstimator:
    """
    Mutual information between the sequence of actions and where it leads, from the models' own densities:

    ``I = E[log q(a_1:k | s, s'_k)] + log N``, ``q = p(s'_k | s, a_1:k) / sum over sequences of p(s'_k | s, .)``

    over ``N`` sequences, all of them or as many as are drawn. That is InfoNCE (van den Oord et al., arXiv:1807.03748)
    with its best critic, ``log p(s'_k | s, a_1:k)``, and the bound of Barber & Agakov (NIPS 2003), whatever ``p`` is
    taken for: in expectation a lower bound of the information that the models' world allows, and at most ``log N``.

    Each ``p`` has the moments of ``rollouts`` imagined futures of its sequence. Where the dynamics do not say how
    likely a state is, it is a mixture of sensor readings (kernels) of the last states. Every future is an outcome once,
    and then left out of its own sequence's ``p``.

    :param dynamics: how the state goes on
    :param outcomes: which part of ``s'_k`` counts, and how sharply it is perceived
    :param rollouts: futures of each sequence, at least 2
    :raises ValueError: if they are fewer
    """

    def __init__(self, dynamics: Dynamics, outcomes: Outcomes, rollouts: int = 4) -> None:
        if rollouts < 2:
            raise ValueError(f"rollouts={rollouts} must be at least 2: what happens is compared with what else may")
        self._dynamics = dynamics
        self._outcomes = outcomes
        self._rollouts = rollouts
        self._matches = isinstance(dynamics, Probabilistic)

    def __call__(self, state: Floats, sequences: Floats, generator: np.random.Generator) -> Doubles:
        """
        :param state: ``(b, D)``
        :param sequences: encoded, all different, ``(N, k, A)``
        :param generator: draws what chance brings
        :return: nats, ``(b,)``
        """
        mean, var = self._imagine(state, sequences, generator)
        # Every future happens once.
        outcome = self._outcomes.draw(mean, var, generator).astype(np.float64)
        log_p = self._matched(mean, var, outcome) if self._matches else self._mixed(mean, var, outcome)
        marginal = np.logaddexp.reduce(log_p, axis=3) - math.log(len(sequences))
        taken = np.arange(len(sequences))
        # A rare outcome may be one that no other future of its sequence shows.
        ratio = np.exp(log_p[:, taken, :, taken].transpose(1, 0, 2) - marginal)
        information: Doubles = np.log((1.0 - SHARE) * ratio + SHARE).mean(axis=(1, 2))
        return information

    def _matched(self, mean: Doubles, var: Doubles, outcome: Doubles) -> Doubles:
        """
        :param mean: of each future of each sequence, ``(b, N, m, o)``
        :param var: ``(b, N, m, o)``
        :param outcome: what comes of it, ``(b, N, m, o)``
        :return: log-likelihood of each outcome by the moments of each sequence's futures, its own left out,
            ``(b, N, m, N)``
        """
        b, n, m, width = mean.shape
        square = var + np.square(mean)
        first, second = mean.sum(axis=2, keepdims=True), square.sum(axis=2, keepdims=True)
        everything = self._of_moments(first, second, m)
        log_p = everything.log(outcome.reshape(b, n * m, width)).reshape(b, n, m, n)
        left = self._of_moments(first - mean, second - square, m - 1)
        flat = outcome.reshape(b, n * m, width)
        own = (left.square * np.square(flat) + left.linear * flat).sum(axis=2) + left.constant
        taken = np.arange(n)
        log_p[:, taken, :, taken] = own.reshape(b, n, m).transpose(1, 0, 2)
        return log_p

    def _of_moments(self, first: Doubles, second: Doubles, count: int) -> Densities:
        """
        :param first: sum of ``count`` means, ``(b, N, c, o)``
        :param second: sum of their second moments, ``(b, N, c, o)``
        :param count: at least 1
        :return: ``N * c`` densities a state
        """
        mean = first / count
        var = np.maximum(second / count - np.square(mean), self._outcomes.sensor)
        return self._densities(*(part.reshape(len(mean), -1, mean.shape[3]) for part in (mean, var)))

    def _mixed(self, mean: Doubles, var: Doubles, outcome: Doubles) -> Doubles:
        """As :meth:`_matched`, by mixtures."""
        b, n, m, width = mean.shape
        mean, var, outcome = (part.reshape(b, n * m, width) for part in (mean, var, outcome))
        log_p = self._densities(mean, var).log(outcome)
        own = np.arange(n * m)
        log_p[:, own, own] = -np.inf
        count = np.full((n, 1, n), float(m))
        count[np.arange(n), 0, np.arange(n)] = m - 1.0
        mixed: Doubles = np.logaddexp.reduce(log_p.reshape(b, n, m, n, m), axis=4) - np.log(count)
        return mixed

    def _imagine(self, state: Floats, sequences: Floats, generator: np.random.Generator) -> tuple[Doubles, Doubles]:
        """
        :param state: ``(b, D)``
        :param sequences: ``(N, k, A)``
        :param generator: draws what chance brings
        :return: mean and variance of the outcome of each future, ``(b, N, m, o)`` both
        """
        b, n, m = len(state), len(sequences), self._rollouts
        actions = np.tile(np.repeat(sequences, m, axis=0), (b, 1, 1))
        # As many rollouts as there are members, or more, ask each; fewer ask others in each sequence.
        members = (np.arange(b * n)[:, None] + np.arange(m)).reshape(-1) % self._dynamics.members
        rows = np.repeat(state, n * m, axis=0)
        mean, var = foresee(self._dynamics, self._outcomes, rows, actions, members, generator)
        return mean.reshape(b, n, m, -1), var.reshape(b, n, m, -1)

    def _densities(self, mean: Doubles, var: Doubles) -> Densities:
        """
        :param mean: ``(b, c, o)``
        :param var: ``(b, c, o)``
        :return: of the outcomes
        """
        numeric, one_hot, binary = self._outcomes.numeric, self._outcomes.one_hot, self._outcomes.binary
        square, linear, constant = np.zeros_like(mean), np.zeros_like(mean), np.zeros(mean.shape[:2])
        centre, spread = mean[..., numeric], var[..., numeric]
        square[..., numeric] = -0.5 / spread
        linear[..., numeric] = centre / spread
        constant -= 0.5 * (np.square(centre) / spread + np.log(spread)).sum(axis=2)
        linear[..., one_hot] = np.log(np.maximum(mean[..., one_hot], LEAST))
        p = mean[..., binary].clip(LEAST, 1.0 - LEAST)
        linear[..., binary] = np.log(p) - np.log1p(-p)
        constant += np.log1p(-p).sum(axis=2)
        return Densities(square, linear, constant)
