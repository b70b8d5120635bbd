"""The symmetries of an environment, applied to what models learn from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.symmetry import Columns, Symmetry


class SymmetryGroup:
    """
    The identity and the symmetries of an environment, applied to batches in which each row has one of its own.

    Learning from images of what was experienced as if they had been experienced is data augmentation (Laskin et al.,
    "Reinforcement learning with augmented data", NeurIPS 2020; for symmetries of the dynamics, Lin et al., "Invariant
    transform experience replay", RA-L 2020).

    :param spec: the environment's state and actions
    :param symmetries: of that environment; the identity need not be among them
    :raises ValueError: if one of them is no signed permutation of what the spec describes
    """

    def __init__(self, spec: StateSpec, symmetries: Sequence[Symmetry]) -> None:
        self._spec = spec
        everything = [Symmetry(), *symmetries]
        o, d = spec.observation_dim, spec.internal_dim
        observation = [signed_permutation("columns", s.columns, "flip", s.flip, o) for s in everything]
        internal = [
            signed_permutation("internal_columns", s.internal_columns, "internal_flip", s.internal_flip, d)
            for s in everything
        ]
        self._columns = np.array(
            [[*ours, *(o + theirs)] for (ours, _), (theirs, _) in zip(observation, internal, strict=True)]
        )
        self._signs = np.array([[*ours, *theirs] for (_, ours), (_, theirs) in zip(observation, internal, strict=True)])
        size = spec.action_dim if spec.continuous else len(spec.actions)
        if not spec.continuous and any(len(s.action_flip) for s in everything):
            raise ValueError(
                f"action_flip negates entries of Box actions, and these are {spec.action_space}: use action"
            )
        action = [signed_permutation("action", s.action, "action_flip", s.action_flip, size) for s in everything]
        self._action_columns, self._action_signs = (np.array(part) for part in zip(*action, strict=True))

    def __len__(self) -> int:
        """Number of symmetries, the identity included."""
        return len(self._columns)

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.intp]:
        """
        :param count: how many, ``n``
        :param generator: decides which
        :return: a symmetry for each row, uniformly, ``(n,)``
        """
        return generator.integers(len(self), size=count)

    def state(self, which: NDArray[np.intp], state: Floats) -> Floats:
        """
        :param which: symmetry of each row, ``(n,)``
        :param state: ``s = [o, x]``, ``(n, D)``
        :return: its image, ``(n, D)``
        """
        # Rows of the flat array: np.take_along_axis takes twice as long.
        places = self._columns[which]
        places += np.arange(0, state.size, state.shape[1])[:, None]
        turned: Floats = np.take(state, places)
        turned *= self._signs[which]
        return turned

    def action(self, which: NDArray[np.intp], action: NDArray[Any]) -> NDArray[Any]:
        """
        :param which: symmetry of each row, ``(n,)``
        :param action: in the units of the action space, ``(n, ...)``
        :return: its image, ``(n, ...)``
        """
        spec = self._spec
        if isinstance(spec.action_space, spaces.Box):
            encoded = np.take_along_axis(spec.encode_action(action), self._action_columns[which], axis=1)
            return spec.decode_action(encoded * self._action_signs[which])
        image: NDArray[Any] = spec.actions[self._action_columns[which, spec.index(action)]].astype(action.dtype)
        return image


def signed_permutation(
    name: str, columns: Columns | None, flips: str, flip: Columns, size: int
) -> tuple[NDArray[np.intp], Floats]:
    """
    :param name: of the permutation, for messages
    :param columns: the permutation. Default: the identity
    :param flips: name of what is negated
    :param flip: which entries those are
    :param size: how many entries there are
    :return: permutation and signs, ``(size,)`` both
    :raises ValueError: if they are none of so many entries
    """
    order = np.arange(size) if columns is None else np.asarray(columns, dtype=np.intp)
    if not np.array_equal(np.sort(order), np.arange(size)):
        raise ValueError(f"a symmetry's {name}={order.tolist()} must be an order of 0 ... {size - 1}")
    negated = np.asarray(flip, dtype=np.intp)
    if not np.isin(negated, np.arange(size)).all():
        raise ValueError(f"a symmetry's {flips}={negated.tolist()} must be among 0 ... {size - 1}")
    signs = np.ones(size, dtype=np.float32)
    signs[negated] = -1.0
    return order, signs
