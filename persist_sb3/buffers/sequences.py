"""Which rows of a ring of steps follow one another, within one environment and one episode."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Windows(NamedTuple):
    """
    Stretches of episodes.

    :param ages: how many rows were written after each; behind a stretch that ends early its last row is repeated,
        ``(b, l)``
    :param valid: which rows are the stretch's own and no repetition, ``(b, l)`` bool; the first always is
    """

    ages: NDArray[np.intp]
    valid: NDArray[np.bool_]


def draw_windows(
    first: NDArray[np.bool_], position: int, size: int, num_envs: int, batch: int, length: int, rng: np.random.Generator
) -> Windows:
    """
    Every row is drawn with the same probability, and then a window of ``length`` rows about it, which is moved into the
    row's episode where it would reach out of it. So a window is short only where the episode is, and deaths, which lie
    at an end, are not drawn less often than other rows.

    :param first: of each row of the ring, whether it follows none: an episode begins, or a reading of the environments
        as a whole, ``(capacity,)``
    :param position: where the ring is written next
    :param size: rows in the ring
    :param num_envs: rows of one step: the row after next in the same environment lies so many rows on
    :param batch: how many windows, ``b``
    :param length: of each, ``l``
    :param rng: decides which
    :return: the windows
    """
    steps = np.arange(1, length)
    ages = rng.integers(size, size=batch)
    offset = rng.integers(length, size=batch)

    def is_first(ages: NDArray[np.intp]) -> NDArray[np.bool_]:
        return first[(position - 1 - ages) % len(first)]

    later = ages[:, None] - steps * num_envs
    linked = (later >= 0) & ~is_first(later)
    ahead = np.logical_and.accumulate(linked, axis=1).sum(axis=1)
    earlier = ages[:, None] + steps * num_envs
    linked = (earlier < size) & ~is_first(earlier - num_envs)
    behind = np.logical_and.accumulate(linked, axis=1).sum(axis=1)

    before = np.minimum(np.maximum(offset, length - 1 - ahead), behind)
    own = np.minimum(before + ahead + 1, length)
    columns = np.arange(length)
    along = np.minimum(columns, own[:, None] - 1)
    return Windows((ages + before * num_envs)[:, None] - along * num_envs, columns < own[:, None])
