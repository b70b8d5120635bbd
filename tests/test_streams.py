"""Random streams: published values, independence of the batch, and the laws that they promise."""

import numpy as np
import pytest

from persist_sb3.streams import Streams, splitmix64

EVERYONE = np.arange(3)


def test_splitmix64_is_the_published_generator() -> None:
    # First outputs of Vigna's reference implementation, splitmix64.c, from state 1234567.
    counter = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(counter).tolist() == expected


def test_a_stream_does_not_depend_on_its_neighbours() -> None:
    many, one = Streams(3), Streams(1)
    many.seed(EVERYONE, np.array([4, 5, 6], dtype=np.uint64))
    one.seed(np.array([0]), np.array([5], dtype=np.uint64))
    together = [many.uniform(EVERYONE, 2)[1], many.uniform(np.array([1]), 3)[0]]
    many.uniform(np.array([0, 2]), 5)
    together.append(many.normal(np.array([1]), 2)[0])
    alone = [one.uniform(np.array([0]), 2)[0], one.uniform(np.array([0]), 3)[0], one.normal(np.array([0]), 2)[0]]
    for left, right in zip(together, alone, strict=True):
        np.testing.assert_array_equal(left, right)


def test_salt_separates_users_of_one_seed() -> None:
    first, second = Streams(1, salt=1), Streams(1, salt=2)
    for streams in (first, second):
        streams.seed(np.array([0]), np.array([7], dtype=np.uint64))
    assert not np.allclose(first.uniform(np.array([0]), 8), second.uniform(np.array([0]), 8))


def test_moments() -> None:
    streams = Streams(200)
    streams.seed(np.arange(200), np.arange(200, dtype=np.uint64))
    uniform = streams.uniform(np.arange(200), 500)
    normal = streams.normal(np.arange(200), 500)
    assert uniform.min() >= 0.0 and uniform.max() < 1.0
    assert uniform.mean() == pytest.approx(0.5, abs=0.005)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.001)
    assert normal.mean() == pytest.approx(0.0, abs=0.015)
    assert normal.var() == pytest.approx(1.0, abs=0.02)
    assert (normal**4).mean() == pytest.approx(3.0, abs=0.15)
    # Neighbouring seeds share nothing.
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.01
