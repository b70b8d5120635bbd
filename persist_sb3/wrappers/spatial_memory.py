"""An agent that remembers what it saw: a map around it in the place of the window around it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.infos import Infos, format_path
from persist_sb3.paths import parse_path
from persist_sb3.symmetry import Symmetry
from persist_sb3.wrappers.adapters import LayerOwner, LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.layer import Layer, Lookup, Step, declared


class SpatialMemoryLayer(Layer):
    """
    Around an environment that shows the surroundings of an agent on a grid, shows a larger map of them: each tile as it
    was when the window last showed it, 0 if it never did, with the agent in the middle. A further channel, the last,
    tells how fresh that is: 1 for what the window shows now, ``fade`` to the power of its age in steps for the rest, 0
    for what was not seen in this episode. What is further away than the map reaches is forgotten. (An egocentric map,
    as in Parisotto & Salakhutdinov, "Neural map: structured memory for deep reinforcement learning", ICLR 2018, but
    written by odometry, with nothing to learn.)

    The agent is told nothing that it could not have remembered by itself: what the window showed, and how far each step
    took it.

    :param window: key of the Dict observation that holds the window: a Box ``(C, S, S)`` or ``(S, S)`` with the agent
        in the middle, or a flattened one, of which the environment has the ``window_shape``; ``S`` is odd
    :param radius: of the map, in tiles: it is ``2 * radius + 1`` tiles wide. Default: one more than the window's
    :param position: where the info has row and column of the agent's tile, which grow downwards and to the right in
        the window
    :param fade: in ``[0, 1]``
    :raises ValueError: if a parameter is out of its range, there is no such window, or the position is none
    """

    def __init__(
        self, window: str = "window", radius: int | None = None, position: str = "info.position", fade: float = 0.99
    ) -> None:
        if not 0.0 <= fade <= 1.0:
            raise ValueError(f"fade={fade!r} must be in [0, 1]: it is what a step leaves of the freshness")
        root, self._position = parse_path(position)
        if root != "info":
            raise ValueError(f"position={position!r} must be an entry of the info, such as 'info.position'")
        self._window, self._radius, self._fade = window, radius, fade

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        space = parts.get(self._window)
        if not isinstance(space, spaces.Box):
            raise ValueError(
                f"window={self._window!r} must be the key of a Box in a Dict observation, and this one is "
                f"{f'a Dict of {list(parts)}' if parts else observation_space}"
            )
        shape = space.shape if len(space.shape) > 1 else tuple(declared(lookup, "window_shape", space.shape))
        channels, height, width = shape if len(shape) == 3 else (1, *shape) if len(shape) == 2 else (0, 0, 0)
        if height != width or height % 2 == 0 or math.prod(shape) != math.prod(space.shape):
            raise ValueError(
                f"window={self._window!r} has shape {space.shape}: it must be (S, S) or (C, S, S) with an odd S, or be "
                "flattened in an environment that has the attribute window_shape"
            )
        sight = height // 2
        radius = sight + 1 if self._radius is None else self._radius
        if radius <= sight:
            raise ValueError(f"radius={radius}: the window has {sight} already, and the map must be larger")
        side = 2 * radius + 1
        self._inner, self._wide = (channels, height, height), (channels + 1, side, side)
        low, high = min(0.0, float(space.low.min())), max(1.0, float(space.high.max()))
        self._outer = self._wide if len(space.shape) > 1 else (math.prod(self._wide),)
        self.observation_space = spaces.Dict(
            {**parts, self._window: spaces.Box(low, high, self._outer, dtype=np.float32)}
        )
        known: Sequence[Symmetry] | None = declared(lookup, "symmetries", None)
        first = sum(
            spaces.flatdim(part) for part in itertools.takewhile(lambda part: part is not space, parts.values())
        )
        size = spaces.flatdim(observation_space)
        self.symmetries = known and [_widened(s, size, first, self._inner, self._wide) for s in known]

        self._seen = slice(radius - sight, radius + sight + 1)
        # Tiles by number and the channels last, so that what moves together lies together; and a tile of nothing, which
        # is where everything beyond the map comes from.
        self._map = np.zeros((num_envs, side**2 + 1, channels + 1), dtype=np.float32)
        self._sources = _sources(side)
        self._at = np.zeros((num_envs, 2), dtype=np.intp)
        self._moved = np.zeros((num_envs, 2), dtype=np.intp)

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        at = infos.column(self._position, slots)
        if at.shape[1:] != (2,):
            raise ValueError(f"info{format_path(self._position)} must be row and column, and is {at[0].tolist()!r}")
        self._at[slots] = at
        self._moved[slots] = 0
        self._map[slots] = 0.0

    def after(self, step: Step) -> NDArray[np.float64]:
        at = step.infos.column(self._position, self.everyone).astype(np.intp)
        self._moved, self._at = at - self._at, at
        return step.reward

    def view(self, slots: NDArray[np.intp], observation: Batch) -> Batch:
        _, side, _ = self._wide
        down, right = (self._moved[slots].clip(-side, side) + side).T
        tiles = self._map[slots[:, None], self._sources[down, right]]
        tiles[..., -1] *= self._fade
        known = tiles.reshape(-1, side, side, tiles.shape[-1])
        in_sight = known[:, self._seen, self._seen]
        in_sight[..., :-1] = observation[self._window].reshape(-1, *self._inner).transpose(0, 2, 3, 1)
        in_sight[..., -1] = 1.0
        self._map[slots, :-1] = tiles
        return {**observation, self._window: known.transpose(0, 3, 1, 2).reshape(-1, *self._outer)}


def _sources(side: int) -> NDArray[np.intp]:
    """
    :param side: of the map, in tiles, ``L``
    :return: where each tile of the map comes from when its agent moves down and to the right by ``-L ... L`` tiles
        each: numbers of tiles, row by row, and ``L**2`` if it comes from beyond the map; ``(2 L + 1, 2 L + 1, L**2)``
    """
    came = np.arange(-side, side + 1)[:, None] + np.arange(side)
    inside = (came >= 0) & (came < side)
    number = came[:, None, :, None] * side + came[None, :, None, :]
    within = inside[:, None, :, None] & inside[None, :, None, :]
    return np.where(within, number, side**2).reshape(2 * side + 1, 2 * side + 1, -1)


def _widened(
    symmetry: Symmetry, size: int, first: int, window: tuple[int, int, int], wide: tuple[int, int, int]
) -> Symmetry:
    """
    :param symmetry: of the observation with the window
    :param size: entries of that observation
    :param first: where the window begins in it
    :param window: its shape
    :param wide: shape of the map
    :return: the same symmetry, of the observation with the map
    :raises ValueError: if it does not turn or mirror the window as a whole
    """
    area, last = window[1] * window[2], first + math.prod(window)
    grown = math.prod(wide) - math.prod(window)
    columns = np.arange(size) if symmetry.columns is None else np.asarray(symmetry.columns)
    flip = np.asarray(symmetry.flip, dtype=np.intp)
    inner = columns[first:last] - first
    channels = inner.reshape(window[0], area)[:, 0] // area
    negated = np.isin(np.arange(first, last), flip).reshape(window[0], area)
    for turns, mirrored in itertools.product(range(4), (False, True)):
        image = _image(window, turns, mirrored)
        if np.array_equal(image[channels], inner.reshape(window)) and (negated == negated[:, :1]).all():
            break
    else:
        raise ValueError(
            "a symmetry of the environment neither turns nor mirrors the window as a whole, so nobody knows what it "
            "makes of the map: declare symmetries=[...] in InternalState, above the memory"
        )
    channels = np.append(channels, window[0])
    shift = np.where(columns >= last, grown, 0)
    outside = columns + shift
    of_map = first + _image(wide, turns, mirrored)[channels].reshape(-1)
    widened = np.concatenate([outside[:first], of_map, outside[last:]])
    elsewhere = flip[(flip < first) | (flip >= last)]
    negated_channels = np.flatnonzero(negated[:, 0])[:, None] * (wide[1] * wide[2]) + np.arange(wide[1] * wide[2])
    flips = [*(elsewhere + np.where(elsewhere >= last, grown, 0)), *(first + negated_channels.reshape(-1))]
    return replace(symmetry, columns=widened, flip=np.array(flips, dtype=np.intp))


def _image(shape: tuple[int, int, int], turns: int, mirrored: bool) -> NDArray[np.intp]:
    """
    :param shape: of a window or map
    :param turns: quarter turns
    :param mirrored: whether it is mirrored after that
    :return: where each of its entries comes from, numbered along the flattened window, of this shape
    """
    image = np.rot90(np.arange(math.prod(shape)).reshape(shape), turns, axes=(1, 2))
    return image[:, :, ::-1] if mirrored else image


class _Declarations(LayerOwner):
    """What is left of the environment's symmetries, for the layers and policies above."""

    layer: SpatialMemoryLayer

    @property
    def symmetries(self) -> Sequence[Symmetry] | None:
        """What leaves the environment as it is; None if nobody says."""
        return self.layer.symmetries


class SpatialMemory(_Declarations, LayerWrapper):
    """:class:`SpatialMemoryLayer` around a ``gymnasium.Env``."""

    layer_type = SpatialMemoryLayer


class VecSpatialMemory(_Declarations, VecLayerWrapper):
    """:class:`SpatialMemoryLayer` around SB3's ``VecEnv``."""

    layer_type = SpatialMemoryLayer


class VectorSpatialMemory(_Declarations, VectorLayerWrapper):
    """:class:`SpatialMemoryLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = SpatialMemoryLayer
