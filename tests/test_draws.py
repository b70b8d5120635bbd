"""Draws by key: independence of the batch, shared chance, and the laws that they promise."""

import numpy as np
import pytest

from persist_sb3.draws import Draws

KEYS = np.arange(400, dtype=np.uint64)


def test_a_row_draws_the_same_whoever_else_is_there() -> None:
    many, one = Draws(KEYS), Draws(KEYS[7:8])
    for draw in ("random", "standard_normal", "random"):
        np.testing.assert_array_equal(getattr(many, draw)((400, 3))[7], getattr(one, draw)((1, 3))[0])


def test_rows_of_one_key_share_their_chance_and_its_rollouts_do_not() -> None:
    draws = Draws.split(np.array([5, 5], dtype=np.uint64), 8).standard_normal((16, 4)).reshape(2, 8, 4)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len(np.unique(draws[0])) == draws[0].size


def test_moments() -> None:
    draws = Draws(KEYS)
    uniform, normal = draws.random((400, 501)), draws.standard_normal((400, 501))
    assert uniform.dtype == normal.dtype == np.float32
    assert uniform.min() >= 0.0 and uniform.max() < 1.0
    assert uniform.mean() == pytest.approx(0.5, abs=0.003)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.001)
    assert normal.mean() == pytest.approx(0.0, abs=0.01)
    assert normal.var() == pytest.approx(1.0, abs=0.01)
    assert (normal**4).mean() == pytest.approx(3.0, abs=0.1)
    # The cosine and the sine of one angle are not correlated, nor are neighbouring keys.
    assert abs(np.corrcoef(normal[:, :250].ravel(), normal[:, 251:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(normal[:-1].ravel(), normal[1:].ravel())[0, 1]) < 0.01


def test_sizes() -> None:
    draws = Draws(KEYS)
    assert draws.random(400).shape == (400,)
    assert draws.standard_normal((400, 2, 3), dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="3 rows draw from a generator of 400"):
        draws.random((3, 2))
