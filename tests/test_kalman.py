"""The extended Kalman filter against the exact one, in closed form, and against what its variances promise."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from persist_sb3.models.kalman import ExtendedKalmanFilter, finite_differences, nees

A = np.array([[0.9, 0.2], [-0.1, 0.95]])
B = np.array([0.1, 0.3])
H = np.array([[1.0, 0.0], [1.0, -2.0], [0.5, 0.5]])
Q = np.array([[0.02, 0.005], [0.005, 0.01]])
R = np.diag([0.1, 0.3, 0.2])


def linear(x: Any, u: Any) -> Any:
    return x @ A.T + u[:, None] * B


def exact(mean: Any, covariance: Any, u: float, z: Any) -> tuple[Any, Any]:
    """One system's Kalman filter in information form, which shares no formula with Joseph's."""
    mean, covariance = A @ mean + B * u, A @ covariance @ A.T + Q
    seen = np.isfinite(z)
    h, r = H[seen], R[np.ix_(seen, seen)]
    information = np.linalg.inv(covariance) + h.T @ np.linalg.inv(r) @ h
    posterior = np.linalg.inv(information)
    return posterior @ (np.linalg.inv(covariance) @ mean + h.T @ np.linalg.inv(r) @ z[seen]), posterior


@pytest.mark.parametrize("jacobians", [True, False])
def test_on_a_linear_system_it_is_the_kalman_filter(jacobians: bool) -> None:
    given: dict[str, Any] = {}
    if jacobians:
        given = {
            "f_jacobian": lambda x, u: np.broadcast_to(A, (len(x), 2, 2)),
            "h_jacobian": lambda x: np.broadcast_to(H, (len(x), 3, 2)),
        }
    kalman = ExtendedKalmanFilter(linear, Q, R, h=lambda x: x @ H.T, **given)
    rng = np.random.default_rng(0)
    n = 5
    mean, covariance = rng.normal(size=(n, 2)), np.tile(np.eye(2), (n, 1, 1))
    expected = [(mean[i], covariance[i]) for i in range(n)]
    for _ in range(30):
        u, z = rng.normal(size=n), rng.normal(size=(n, 3))
        z[rng.random((n, 3)) < 0.4] = np.nan
        mean, covariance = kalman.update(*kalman.predict(mean, covariance, u), z)
        expected = [exact(*expected[i], u[i], z[i]) for i in range(n)]
        np.testing.assert_allclose(mean, [m for m, _ in expected], atol=1e-8)
        np.testing.assert_allclose(covariance, [c for _, c in expected], atol=1e-8)


def run(trust: float, n: int = 400, steps: int = 40) -> tuple[float, float]:
    """:return: mean NEES, and share of the truth within the 90 % intervals, of a filter that uses ``trust * Q``"""
    rng = np.random.default_rng(1)
    kalman = ExtendedKalmanFilter(linear, trust * Q, R, h=lambda x: x @ H.T)
    x = rng.normal(size=(n, 2))
    mean, covariance = np.zeros((n, 2)), np.tile(np.eye(2), (n, 1, 1))
    for _ in range(steps):
        u = rng.normal(size=n)
        x = linear(x, u) + rng.multivariate_normal([0.0, 0.0], Q, size=n)
        z = x @ H.T + rng.multivariate_normal(np.zeros(3), R, size=n)
        z[rng.random((n, 3)) < 0.5] = np.nan
        mean, covariance = kalman.update(*kalman.predict(mean, covariance, u), z)
    deviation = np.sqrt(np.einsum("nii->ni", covariance))
    return float(nees(mean, covariance, x).sum()), float((np.abs(x - mean) <= 1.645 * deviation).mean())


def test_nees_is_chi_square_under_the_right_model() -> None:
    n = 400
    total, coverage = run(1.0, n)
    low, high = stats.chi2.ppf([0.005, 0.995], 2 * n)
    assert low < total < high
    assert coverage == pytest.approx(0.9, abs=0.03)


def test_nees_tells_that_the_process_noise_is_underestimated() -> None:
    n = 400
    total, coverage = run(0.01, n)
    assert total > stats.chi2.ppf(0.999999, 2 * n)
    assert coverage < 0.75


def test_a_pendulum_is_tracked() -> None:
    dt, sd = 0.05, 0.2

    def swing(x: Any) -> Any:
        velocity = x[:, 1] - dt * 9.81 * np.sin(x[:, 0])
        return np.stack([x[:, 0] + dt * velocity, velocity], axis=1)

    # The horizontal position of the bob is seen.
    kalman = ExtendedKalmanFilter(swing, [1e-5, 1e-4], [sd**2], h=lambda x: np.sin(x[:, :1]))
    rng = np.random.default_rng(2)
    n = 200
    x = rng.normal([0.5, 0.0], [0.2, 0.5], size=(n, 2))
    mean, covariance = np.tile([0.5, 0.0], (n, 1)), np.tile(np.diag([0.2, 0.5]) ** 2, (n, 1, 1))
    errors = []
    for _ in range(100):
        x = swing(x) + rng.normal(size=(n, 2)) * np.sqrt([1e-5, 1e-4])
        z = np.sin(x[:, :1]) + rng.normal(0.0, sd, size=(n, 1))
        mean, covariance = kalman.update(*kalman.predict(mean, covariance), z)
        errors.append(np.abs(np.sin(mean[:, :1]) - np.sin(x[:, :1])))
    assert np.mean(errors[20:]) < 0.4 * sd * np.sqrt(2.0 / np.pi)  # what the measurements themselves are off by
    assert nees(mean, covariance, x).mean() == pytest.approx(2.0, abs=0.5)


def test_rows_are_independent() -> None:
    kalman = ExtendedKalmanFilter(linear, Q, R, h=lambda x: x @ H.T)
    rng = np.random.default_rng(3)
    mean, covariance, u, z = (
        rng.normal(size=(6, 2)),
        np.tile(np.eye(2), (6, 1, 1)),
        rng.normal(size=6),
        np.zeros((6, 3)),
    )
    together = kalman.update(*kalman.predict(mean, covariance, u), z)
    for i in range(6):
        row = slice(i, i + 1)
        alone = kalman.update(*kalman.predict(mean[row], covariance[row], u[row]), z[row])
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[row], other, atol=1e-12)


def test_finite_differences() -> None:
    x = np.random.default_rng(0).normal(size=(7, 2))
    slopes = finite_differences(lambda p: np.stack([p[:, 0] ** 2 * p[:, 1], np.sin(p[:, 1])], axis=1), x, 1e-5)
    zero = np.zeros(7)
    expected = np.stack(
        [np.stack([2 * x[:, 0] * x[:, 1], x[:, 0] ** 2], axis=1), np.stack([zero, np.cos(x[:, 1])], axis=1)], axis=1
    )
    np.testing.assert_allclose(slopes, expected, atol=1e-8)


def test_nees_of_a_diagonal_is_that_of_its_matrix() -> None:
    rng = np.random.default_rng(0)
    mean, truth, variance = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.uniform(0.1, 1.0, (4, 3))
    np.testing.assert_allclose(
        nees(mean, variance, truth), nees(mean, variance[:, :, None] * np.eye(3), truth), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"process_noise": [-1.0, 1.0]}, "process_noise=.*no covariance"),
        ({"process_noise": [[1.0, 2.0], [0.0, 1.0]]}, "no covariance"),
        ({"process_noise": [np.nan, 1.0]}, "no covariance"),
        ({"process_noise": np.ones((2, 3))}, r"shape \(2, 3\)"),
        ({"measurement_noise": 1.0}, r"shape \(\)"),
        ({"measurement_noise": [1.0]}, "about 2 variables and measurement_noise about 1"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
    ],
)
def test_wrong_parameters_are_refused(kwargs: Any, message: str) -> None:
    good: dict[str, Any] = {"process_noise": [1.0, 1.0], "measurement_noise": [1.0, 1.0]}
    with pytest.raises(ValueError, match=message):
        ExtendedKalmanFilter(linear, **good | kwargs)


def test_wrong_shapes_are_refused() -> None:
    state = np.zeros((3, 2)), np.tile(np.eye(2), (3, 1, 1))
    with pytest.raises(ValueError, match=r"f has the shape \(3,\), and should have \(3, 2\)"):
        ExtendedKalmanFilter(lambda x: x[:, 0], [1.0, 1.0], [1.0, 1.0]).predict(*state)
    with pytest.raises(ValueError, match=r"measurement has the shape \(3, 1\)"):
        ExtendedKalmanFilter(lambda x: x, [1.0, 1.0], [1.0, 1.0]).update(*state, np.zeros((3, 1)))
