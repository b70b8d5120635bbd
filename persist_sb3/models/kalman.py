"""The extended Kalman filter: what is known of hidden variables whose dynamics are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[..., NDArray[Any]]


def finite_differences(function: Callable[[Array], NDArray[Any]], x: Array, epsilon: float) -> Array:
    """
    :param function: takes ``(r, d)`` and returns ``(r, m)``, each row by itself
    :param x: where the derivative is wanted, ``(n, d)``
    :param epsilon: half of the distance between the two points of a central difference
    :return: the Jacobians, ``(n, m, d)``; the function was called once, with ``2 * d * n`` rows
    """
    n, d = x.shape
    shift = epsilon * np.eye(d)
    points = np.concatenate([x + row for row in (*shift, *-shift)])
    values = np.asarray(function(points), dtype=np.float64).reshape(2, d, n, -1)
    return ((values[0] - values[1]) / (2.0 * epsilon)).transpose(1, 2, 0)


class ExtendedKalmanFilter:
    """
    The extended Kalman filter (Jazwinski, "Stochastic processes and filtering theory", 1970) for ``n`` systems at once.
    Their state goes ``x' = f(x, ...) + w`` with ``w ~ N(0, Q)``, and ``z = h(x) + v`` with ``v ~ N(0, R)`` is seen of
    it. Where ``f`` and ``h`` are linear it is the Kalman filter, and exact. The covariance is updated in Joseph's form,
    which keeps it positive.

    The filter keeps nothing between calls: means and covariances are the caller's.

    :param f: takes states ``(r, d)`` and what was given to :meth:`predict`, with as many rows, and returns the
        following states ``(r, d)``; each row by itself
    :param process_noise: ``Q``: its diagonal ``(d,)``, or the matrix ``(d, d)``
    :param measurement_noise: ``R``: its diagonal ``(m,)``, or the matrix ``(m, m)``
    :param h: takes states ``(r, d)`` and returns measurements ``(r, m)``. Default: all of the state is measured
    :param f_jacobian: takes what ``f`` takes and returns its derivatives by the state, ``(r, d, d)``. Default: central
        differences
    :param h_jacobian: likewise of ``h``, ``(r, m, d)``
    :param epsilon: half-width of the central differences, in the state's unit
    :raises ValueError: if a covariance is not one, or ``epsilon`` is not positive
    """

    def __init__(
        self,
        f: Function,
        process_noise: Any,
        measurement_noise: Any,
        h: Function | None = None,
        f_jacobian: Function | None = None,
        h_jacobian: Function | None = None,
        epsilon: float = 1e-4,
    ) -> None:
        if not epsilon > 0.0:
            raise ValueError(f"epsilon={epsilon} must be positive")
        self.process_noise = _covariance("process_noise", process_noise)
        self.measurement_noise = _covariance("measurement_noise", measurement_noise)
        d, m = len(self.process_noise), len(self.measurement_noise)
        if h is None and d != m:
            raise ValueError(
                f"process_noise is about {d} variables and measurement_noise about {m}: give h, or make them as many"
            )
        self._f, self._h = f, h
        self._f_jacobian, self._h_jacobian = f_jacobian, h_jacobian
        self._epsilon = epsilon
        self._eye = np.eye(d)

    def predict(
        self, mean: Array, covariance: Array, *inputs: Any, process_noise: Array | None = None
    ) -> tuple[Array, Array]:
        """
        A step goes by.

        :param mean: ``(n, d)``
        :param covariance: ``(n, d, d)``
        :param inputs: what else ``f`` takes: arrays ``(n, ...)``, or dicts or tuples of them
        :param process_noise: ``Q`` of this step, ``(n, d, d)``. Default: the filter's
        :return: the mean and covariance after it
        :raises ValueError: if ``f`` returns something of another shape
        """
        n, d = mean.shape
        following = _checked("f", self._f(mean, *inputs), (n, d))
        if self._f_jacobian is not None:
            jacobian = _checked("f_jacobian", self._f_jacobian(mean, *inputs), (n, d, d))
        else:
            repeated = [_repeat(value, 2 * d) for value in inputs]
            jacobian = finite_differences(lambda x: self._f(x, *repeated), mean, self._epsilon)
        noise = self.process_noise if process_noise is None else process_noise
        return following, jacobian @ covariance @ jacobian.transpose(0, 2, 1) + noise

    def update(self, mean: Array, covariance: Array, measurement: Array) -> tuple[Array, Array]:
        """
        Something is seen.

        :param mean: ``(n, d)``
        :param covariance: ``(n, d, d)``
        :param measurement: ``z``, ``(n, m)``; NaN where nothing was measured
        :return: the mean and covariance after it
        :raises ValueError: if the measurement, or what ``h`` returns, is of another shape
        """
        (n, d), m = mean.shape, len(self.measurement_noise)
        measurement = _checked("measurement", measurement, (n, m))
        if self._h is None:
            expected, slope = mean, np.broadcast_to(self._eye, (n, d, d))
        else:
            expected = _checked("h", self._h(mean), (n, m))
            if self._h_jacobian is not None:
                slope = _checked("h_jacobian", self._h_jacobian(mean), (n, m, d))
            else:
                slope = finite_differences(self._h, mean, self._epsilon)
        # What is missing is a measurement of nothing, with a noise of its own.
        seen = np.isfinite(measurement)
        slope = np.where(seen[:, :, None], slope, 0.0)
        both = seen[:, :, None] & seen[:, None, :]
        noise = np.where(both, self.measurement_noise, np.eye(m))
        innovation = np.where(seen, measurement - expected, 0.0)
        cross = slope @ covariance
        gain = np.linalg.solve(cross @ slope.transpose(0, 2, 1) + noise, cross).transpose(0, 2, 1)
        rest = self._eye - gain @ slope
        covariance = rest @ covariance @ rest.transpose(0, 2, 1) + gain @ noise @ gain.transpose(0, 2, 1)
        return mean + (gain @ innovation[:, :, None])[:, :, 0], (covariance + covariance.transpose(0, 2, 1)) / 2.0


def nees(mean: Array, covariance: Array, truth: Array) -> Array:
    """
    The normalised estimation error squared (Bar-Shalom, Li & Kirubarajan, "Estimation with applications to tracking and
    navigation", 2001, section 5.4). Under a right filter it has a chi-square distribution with ``d`` degrees of
    freedom, so its mean is ``d``: above, the filter is too sure of itself.

    :param mean: ``(n, d)``
    :param covariance: ``(n, d, d)``, or its diagonal ``(n, d)``
    :param truth: ``(n, d)``
    :return: ``(n,)``
    """
    error = truth - mean
    if covariance.ndim == 2:
        return np.asarray((error**2 / covariance).sum(axis=1))
    return np.einsum("nd,nd->n", error, np.linalg.solve(covariance, error[:, :, None])[:, :, 0])


def _covariance(name: str, given: Any) -> Array:
    """
    :param name: of the parameter
    :param given: a diagonal, or a matrix
    :return: the matrix, ``(d, d)``
    :raises ValueError: if it is no covariance
    """
    matrix = np.asarray(given, dtype=np.float64)
    if matrix.ndim == 1:
        matrix = np.diag(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} has the shape {np.shape(given)}: give the variances (d,), or a covariance (d, d)")
    if not (np.isfinite(matrix).all() and np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix)[0] >= 0.0):
        raise ValueError(f"{name}={given!r} is no covariance: it must be finite, symmetric and not negative")
    return matrix


def _checked(name: str, given: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(given, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, and should have {shape}")
    return array


def _repeat(value: Any, times: int) -> Any:
    if isinstance(value, dict):
        return {key: _repeat(part, times) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_repeat(part, times) for part in value)
    return np.concatenate([value] * times)
