"""What GridLife shows of itself, the same in all of its forms: spaces, names, limits, and the meaning of actions."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import ACTIONS, CHANNELS, INTERNAL_NAMES, MOVES, GridLifeParams
from persist_sb3.envs.layout import SPLITS
from persist_sb3.symmetry import Symmetry
from persist_sb3.viability import ViabilitySet, unknown_name

Split = Literal["train", "validation", "test"]
RESET_OPTIONS = ("layout_seed",)


class Interface:
    """
    Spaces of one form of GridLife.

    :param params: the world's parameters
    :param flat: one flat Box instead of a Dict
    :param continuous: two real numbers as action instead of one of five
    :param scent: whether the direction and strength of the nearest food are observed
    """

    def __init__(self, params: GridLifeParams, flat: bool, continuous: bool, scent: bool) -> None:
        side = 2 * params.radius + 1
        self.params = params
        self.flat = flat
        self.continuous = continuous
        self.scent = scent
        self.window_shape = (len(CHANNELS), side, side)
        self.window_size = len(CHANNELS) * side * side
        self.size = self.window_size + len(INTERNAL_NAMES) + 2 * scent
        self.action_space: spaces.Space[Any] = (
            spaces.Box(-1.0, 1.0, (2,), np.float32) if continuous else spaces.Discrete(len(ACTIONS))
        )
        # Not flatten_space(): it would sort the parts by name.
        low = np.concatenate([np.zeros(self.window_size + len(INTERNAL_NAMES)), np.full(2 * scent, -1.0)])
        box = spaces.Box(low.astype(np.float32), 1.0, dtype=np.float32)
        parts: dict[str, spaces.Space[Any]] = {
            "window": spaces.Box(0.0, 1.0, (self.window_size,), np.float32),
            "internal": spaces.Box(0.0, 1.0, (len(INTERNAL_NAMES),), np.float32),
        }
        if scent:
            parts["scent"] = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space: spaces.Space[Any] = box if flat else spaces.Dict(parts)
        first, last = self.window_size, self.window_size + len(INTERNAL_NAMES)
        self._slices = {"window": slice(first), "internal": slice(first, last), "scent": slice(last, last + 2)}
        self._parts = tuple(parts)

    def shaped(self, flat_observations: NDArray[np.float32]) -> Any:
        """
        :param flat_observations: ``(..., size)``
        :return: a copy of them, as the observation space has it
        """
        if self.flat:
            return flat_observations.copy()
        return {name: flat_observations[..., self._slices[name]].copy() for name in self._parts}

    def move(self, action: Any) -> int:
        """
        :param action: of the action space
        :return: the move that it stands for, an index into ``ACTIONS``
        :raises TypeError: if it is not of the kind or shape of the action space
        :raises ValueError: if it is outside of the action space
        """
        array = np.asarray(action)
        if self.continuous and array.shape == (2,) and array.dtype.kind in "fiu":
            down, right = array.tolist()
            if -1.0 <= down <= 1.0 and -1.0 <= right <= 1.0:
                if max(abs(down), abs(right)) <= self.params.dead_zone:
                    return 0
                if abs(down) >= abs(right):
                    return 2 if down > 0 else 1
                return 4 if right > 0 else 3
        return int(self.moves(array[None])[0])

    def moves(self, actions: NDArray[Any]) -> NDArray[np.int64]:
        """
        :param actions: of the action space, ``(n, ...)``
        :return: the moves that they stand for, indices into ``ACTIONS``, ``(n,)``
        :raises TypeError: if they are not of the kind or shape of the action space
        :raises ValueError: if one is outside of the action space
        """
        kinds, shape = ("fiu", (len(actions), 2)) if self.continuous else ("iu", (len(actions),))
        if actions.dtype.kind not in kinds or actions.shape != shape:
            what = "two numbers in [-1, 1]" if self.continuous else f"an integer 0 ... {len(ACTIONS) - 1}"
            raise TypeError(f"a GridLife action must be {what}; {actions!r} is not {len(actions)} of these")
        if not self.continuous:
            require_actions((actions >= 0) & (actions < len(ACTIONS)), actions, f"0 ... {len(ACTIONS) - 1}")
            return actions.astype(np.int64, copy=False)
        # NaN fails the comparison too.
        require_actions((np.abs(actions) <= 1).all(axis=1), actions, "[-1, 1]")
        down, right = actions.T
        vertical = np.abs(down) >= np.abs(right)
        move = np.where(vertical, np.where(down > 0, 2, 1), np.where(right > 0, 4, 3))
        return np.where(np.abs(actions).max(axis=1) > self.params.dead_zone, move, 0)

    def symmetries(self) -> list[Symmetry]:
        """
        :return: the quarter turns and mirror images of the world, which knows no direction; without the identity
        """
        window = np.arange(self.window_size).reshape(self.window_shape)
        directions = np.array(MOVES[1:])
        found = []
        for turns in range(4):
            for mirrored in (False, True):
                image = np.rot90(window, turns, axes=(1, 2))
                image = image[:, :, ::-1] if mirrored else image
                # Where steps down and to the right lead then: a quarter turn takes (down, right) to (-right, down).
                turned = np.linalg.matrix_power([[0, -1], [1, 0]], turns)
                turned = np.array([[1, 0], [0, -1 if mirrored else 1]]) @ turned
                places = {"window": image.reshape(-1), "internal": np.arange(len(INTERNAL_NAMES))}
                swapped, signs = np.abs(turned).argmax(axis=1), turned.sum(axis=1)
                places["scent"] = swapped
                columns, flip = self._flattened(places, np.flatnonzero(signs < 0))
                moved = directions @ turned.T
                image_of = [int((directions == move).all(axis=1).argmax()) + 1 for move in moved]
                found.append(
                    Symmetry(columns, flip, action=swapped, action_flip=np.flatnonzero(signs < 0))
                    if self.continuous
                    else Symmetry(columns, flip, action=[0, *image_of])
                )
        return found[1:]

    def _flattened(
        self, places: dict[str, NDArray[np.intp]], negated: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """
        :param places: where the entries of each part of the observation come from, within the part
        :param negated: entries of the scent that are negated
        :return: where the entries of the flattened observation come from, and which are negated
        """
        parts = self._parts if self.flat else sorted(self._parts)
        columns, flip, first = [], np.zeros(0, dtype=np.intp), 0
        for name in parts:
            columns.append(first + places[name])
            if name == "scent":
                flip = first + negated
            first += len(places[name])
        return np.concatenate(columns), flip

    def require_discrete(self) -> None:
        """
        :raises TypeError: in the continuous form, which has no action masks
        """
        if self.continuous:
            raise TypeError("the continuous form of GridLife has no action masks: use GridLife-v0 or GridLifeFlat-v0")

    def entries(self, hidden: Collection[str]) -> dict[str, str]:
        """
        :param hidden: internal variables that are not shown
        :return: where the others are in the observation
        """
        where = f"obs[{self.window_size}]" if self.flat else "obs.internal[0]"
        head, _, tail = where.rpartition("[")
        first = int(tail[:-1])
        return {name: f"{head}[{first + j}]" for j, name in enumerate(INTERNAL_NAMES) if name not in hidden}


def layout_range(split: Split, layout_seed: int | None) -> tuple[int, int]:
    """
    :param split: which layouts episodes are played on
    :param layout_seed: if given, the one layout of all episodes
    :return: first and last-plus-one layout seed
    :raises ValueError: if there is no such split, or the layout seed is negative
    """
    if split not in SPLITS:
        raise ValueError(f"GridLife's split must be one of {', '.join(map(repr, SPLITS))}, not {split!r}")
    if layout_seed is None:
        return SPLITS[split]
    return checked_layout_seed(layout_seed), layout_seed + 1


def checked_layout_seed(layout_seed: Any) -> int:
    """
    :param layout_seed: what was given as one
    :return: the same
    :raises ValueError: if it is not an integer in ``[0, 2**63)``
    """
    if not isinstance(layout_seed, int | np.integer) or not 0 <= layout_seed < 2**63:
        raise ValueError(f"layout_seed must be an integer in [0, 2**63), not {layout_seed!r}")
    return int(layout_seed)


def forced_layout_seed(options: dict[str, Any] | None) -> int | None:
    """
    :param options: the options of a reset
    :return: the layout seed it asks for, if it does
    :raises TypeError: if there is an option that GridLife does not have
    """
    if not options:
        return None
    for key in options:
        if key not in RESET_OPTIONS:
            raise TypeError(f"GridLife's reset has no option {key!r}; its options are {', '.join(RESET_OPTIONS)}")
    return checked_layout_seed(options["layout_seed"])


def make_viability(constraints: Sequence[str], setpoint: Sequence[float]) -> ViabilitySet:
    """
    :param constraints: each on one internal variable
    :param setpoint: ``(3,)``
    :return: the set they describe
    :raises ValueError: if a constraint cannot be read, or is not a limit of a single variable
    """
    d = len(INTERNAL_NAMES)
    viability = ViabilitySet(constraints, INTERNAL_NAMES, mu=setpoint, low=[0.0] * d, high=[1.0] * d)
    for constraint in viability.constraints:
        if constraint.limits is None:
            raise ValueError(
                f"GridLife ends an episode by limits on single variables, and '{constraint.text}' is not one: "
                f"bound {', '.join(INTERNAL_NAMES)} each by itself, as in 'energy >= 0.2'"
            )
    return viability


def limits(viability: ViabilitySet, params: GridLifeParams) -> tuple[NDArray[np.float64], ...]:
    """
    :param viability: the set in force
    :param params: the world's parameters
    :return: lower limits, upper limits, setpoint, and how far from it an episode may start; ``(3,)`` each
    """
    low, high = viability.box()
    assert viability.mu is not None
    spread = np.minimum(params.start_spread, 0.5 * np.minimum(viability.mu - low, high - viability.mu))
    return low, high, viability.mu, spread


def checked_hidden(names: Sequence[str]) -> tuple[str, ...]:
    """
    :param names: internal variables to hide
    :return: the same
    :raises ValueError: if GridLife has no such variable, naming the nearest
    """
    if isinstance(names, str):
        raise TypeError(f"the names to hide must be a list of strings, not one string: use [{names!r}]")
    for name in names:
        if name not in INTERNAL_NAMES:
            raise ValueError(unknown_name(name, INTERNAL_NAMES))
    return tuple(names)


def require_actions(fine: NDArray[np.bool_], actions: NDArray[Any], where: str) -> None:
    """
    :param fine: which actions are in the action space, ``(n,)``
    :param actions: all of them, ``(n, ...)``
    :param where: what an action must be in
    :raises ValueError: if one is not fine, naming the environment
    """
    if not fine.all():
        i = int(fine.argmin())
        raise ValueError(f"a GridLife action must be in {where}; that of environment {i} is {actions[i]}")
