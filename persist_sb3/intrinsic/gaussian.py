"""Empowerment of continuous actions: the information in a channel that is linear where it is looked at."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from persist_sb3.intrinsic.outcomes import Outcomes, check_gradient, foresee
from persist_sb3.models.imagination import Dynamics
from persist_sb3.models.spec import Floats

#: Variance of an entry that is uniform in ``[-1, 1]``.
UNIFORM = 1.0 / 3.0


@runtime_checkable
class Differentiable(Protocol):
    """Dynamics that can be differentiated."""

    def predict(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`persist_sb3.models.imagination.LearnedDynamics.predict`."""


def gaussian_information(jacobian: torch.Tensor, covariance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """
    ``0.5 log det(I + J Sigma J^T / sigma^2)``: what ``s' = J a + noise`` tells of ``a ~ N(0, Sigma)``, exactly (Cover &
    Thomas, Elements of Information Theory, section 9.4; as empowerment: Salge, Glackin & Polani, arXiv:1310.1863,
    section 4.6). The determinant is taken in the smaller of its two forms, of ``m`` or of ``p`` rows.

    :param jacobian: ``J``, ``(n, m, p)``
    :param covariance: ``Sigma``, ``(p, p)``
    :param noise: ``sigma^2`` of each entry of ``s'``, ``(m,)`` or ``(n, m)``
    :return: nats, ``(n,)``
    """
    scaled = jacobian @ torch.linalg.cholesky(covariance) / noise.sqrt()[..., None]
    gram = scaled.mT @ scaled if scaled.shape[2] <= scaled.shape[1] else scaled @ scaled.mT
    # Eigenvalues below 1 can only be the rounding of sums that are far greater.
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    return 0.5 * torch.log1p(eigenvalues).sum(dim=1)


class GaussianEstimator:
    """
    :func:`gaussian_information` of the imagined rollout of ``k`` actions, linearised about the sequence that it is
    given. The noise is what chance and the sensor make of the last state, each entry by itself: the variance over
    ``rollouts`` futures of the same actions, or a number that is given.

    :param dynamics: how the state goes on
    :param outcomes: which part of ``s'_k`` counts, and how sharply it is perceived
    :param covariance: of an action, scaled to ``[-1, 1]``: a variance, or ``(A, A)``. Default: that of the uniform
        distribution
    :param noise: ``sigma^2`` of every entry. Default: from the models and the sensor
    :param rollouts: futures that the models' noise is measured in
    :raises TypeError: if the dynamics cannot be differentiated
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        dynamics: Dynamics,
        outcomes: Outcomes,
        covariance: ArrayLike | None = None,
        noise: float | None = None,
        rollouts: int = 4,
    ) -> None:
        if not isinstance(dynamics, Differentiable):
            raise TypeError(
                f"the log-det estimator differentiates the dynamics, and {type(dynamics).__name__} has no "
                "predict(state, action) in torch: let WorldModelCallback learn them, or use estimator='infonce'"
            )
        check_gaussian(covariance, noise)
        if rollouts < 2:
            raise ValueError(f"rollouts={rollouts} must be at least 2: a variance is measured")
        self._dynamics: Dynamics = dynamics
        self._predict = dynamics.predict
        self._outcomes = outcomes
        self._columns = torch.as_tensor(outcomes.columns)
        self._covariance = UNIFORM if covariance is None else covariance
        self._noise = noise
        self._rollouts = rollouts

    def __call__(self, state: Floats, sequences: Floats, generator: np.random.Generator) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param sequences: encoded, one a state, ``(n, k, A)``
        :param generator: draws what chance brings
        :return: nats, ``(n,)``
        """
        k, width = sequences.shape[1:]
        step = np.asarray(self._covariance, dtype=np.float64) * (np.eye(width) if np.ndim(self._covariance) == 0 else 1)
        covariance = torch.as_tensor(np.kron(np.eye(k), step))
        jacobian = self.jacobian(torch.as_tensor(state), torch.as_tensor(sequences)).double()
        if self._noise is not None:
            noise = torch.full((len(self._columns),), self._noise, dtype=torch.float64)
        else:
            noise = torch.as_tensor(self._spread(state, sequences, generator))
        return gaussian_information(jacobian, covariance, noise).numpy()

    def jacobian(self, state: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :param sequences: ``(n, k, A)``
        :return: of the outcome's mean by the actions, by forward differentiation, all directions at once,
            ``(n, m, k A)``
        :raises ImaginationError: if it is not finite
        """
        n, k, width = sequences.shape

        def roll(actions: torch.Tensor) -> torch.Tensor:
            following = state
            for step in range(k):
                following = self._predict(following, actions[:, step])[0]
            return following[:, self._columns]

        directions = torch.eye(k * width, dtype=sequences.dtype).reshape(k * width, 1, k, width)
        directions = directions.expand(-1, n, -1, -1)
        with torch.no_grad():
            columns = torch.func.vmap(lambda way: torch.func.jvp(roll, (sequences,), (way,))[1])(directions)
        jacobian: torch.Tensor = columns.permute(1, 2, 0)
        check_gradient(jacobian)
        return jacobian

    def _spread(self, state: Floats, sequences: Floats, generator: np.random.Generator) -> NDArray[np.float64]:
        m = self._rollouts
        rows, actions = np.repeat(state, m, axis=0), np.repeat(sequences, m, axis=0)
        members = np.tile(np.arange(m) % self._dynamics.members, len(state))
        moments = foresee(self._dynamics, self._outcomes, rows, actions, members, generator)
        mean, var = (part.reshape(len(state), m, -1) for part in moments)
        total: NDArray[np.float64] = var.mean(axis=1) + mean.var(axis=1, ddof=1)
        return total


def check_gaussian(covariance: ArrayLike | None, noise: float | None) -> None:
    """
    :param covariance: a variance, ``(A, A)``, or None
    :param noise: a variance, or None
    :raises ValueError: if one is not positive (definite) and finite
    """
    if covariance is not None:
        matrix = np.atleast_2d(np.asarray(covariance, dtype=np.float64))
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and np.isfinite(matrix).all()
        if not (square and np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > 0.0):
            raise ValueError(f"action_cov={covariance} must be a positive variance, or a positive definite matrix")
    if noise is not None and not 0.0 < noise < np.inf:
        raise ValueError(f"noise_var={noise} must be positive and finite")
