"""Symmetries of an environment: one transition says what its mirror images would have been."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Columns = Sequence[int] | NDArray[np.intp]


@dataclass(frozen=True)
class Symmetry:
    """
    A change of observations, internal variables and actions at once that an environment does not notice: its image of
    a transition is as likely as the transition. Each is a signed permutation of flattened entries (in the order of
    ``gymnasium.spaces.flatten``): entry ``i`` of the image is entry ``columns[i]``, negated where ``i`` is in ``flip``.

    A cart with a pole, mirrored: ``Symmetry(flip=[0, 1, 2, 3], internal_flip=[0, 1], action=[1, 0])``.

    :param columns: of the observation. Default: all stay where they are
    :param flip: entries of the observation that are negated, after that
    :param internal_columns: of the internal variables, likewise
    :param internal_flip: internal variables that are negated
    :param action: of actions that can be counted: the image of each, ``(k,)``; of Box actions: their columns
    :param action_flip: entries of Box actions that are negated, in half-ranges about the middle of their range
    """

    columns: Columns | None = None
    flip: Columns = ()
    internal_columns: Columns | None = None
    internal_flip: Columns = ()
    action: Columns | None = None
    action_flip: Columns = ()

    def showing(self, size: int, internal_size: int, at: int) -> "Symmetry":
        """
        :param size: entries of the observation
        :param internal_size: number of internal variables
        :param at: where they are inserted into the observation
        :return: the same symmetry, of the longer observation
        """
        columns = np.arange(size) if self.columns is None else np.asarray(self.columns)
        internal = np.arange(internal_size) if self.internal_columns is None else np.asarray(self.internal_columns)
        longer = np.insert(columns + internal_size * (columns >= at), at, at + internal)
        flip = np.asarray(self.flip, dtype=np.intp)
        negated = [*(flip + internal_size * (flip >= at)), *(at + np.asarray(self.internal_flip, dtype=np.intp))]
        return replace(self, columns=longer, flip=negated)
