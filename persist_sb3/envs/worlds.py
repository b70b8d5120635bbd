"""The worlds of ``n`` environments, packed into a few arrays."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import CHANNELS, SEES_OUTSIDE, GridLifeParams
from persist_sb3.envs.layout import GOLDEN
from persist_sb3.streams import splitmix64

# Columns of the integers. A world whose NEXT_EVENT is 0 is over, or was never begun.
CELL: Final = 0
STEP: Final = 1
NEXT_SLIP: Final = 2
NEXT_EVENT: Final = 3
LAYOUT_SEED: Final = 4
CHANCE: Final = 5
LAYOUTS: Final = 6
TERMINATED: Final = 7
TRUNCATED: Final = 8
REACHED: Final = 9
FIXED_INTS: Final = 10

# Columns of the real numbers; three where there is one for each internal variable.
INTERNAL: Final = 0
TOTAL: Final = 3
REWARD: Final = 4
FINAL: Final = 5
LOW: Final = 8
HIGH: Final = 11
SETPOINT: Final = 14
SPREAD: Final = 17
SHOWN: Final = 20
FLOATS: Final = 23

# What is on a tile; FIRST_SLOT + s where food or item s is.
EMPTY: Final = 0
HAZARD: Final = 1
FIRST_SLOT: Final = 2

NEVER: Final = np.iinfo(np.int64).max


def tile_codes(hazard: NDArray[np.bool_], places: NDArray[np.int64], present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """
    :param hazard: ``(k, A)``
    :param places: tile of each food and item, ``(k, slots)``
    :param present: which of them are there, ``(k, slots)``
    :return: what is on each tile, ``(k, A)``
    """
    tiles = np.where(hazard, HAZARD, EMPTY)
    row, slot = np.nonzero(present)
    tiles[row, places[row, slot]] = FIRST_SLOT + slot
    return tiles


class Worlds:
    """
    Few arrays, since handing one to compiled code costs 0.2 us: a row of each is all there is to know about a world.

    :param num_envs: number of worlds, ``n``
    :param params: the parameters of all
    :param observation_size: length of a flat observation
    """

    def __init__(self, num_envs: int, params: GridLifeParams, observation_size: int) -> None:
        slots, area, side = params.slots, params.size**2, params.size + 2 * params.radius
        self.ints = np.zeros((num_envs, FIXED_INTS + 2 * slots + 2 * area), dtype=np.int64)
        self.floats = np.zeros((num_envs, FLOATS))
        self.maps = np.zeros((num_envs, side, side, len(CHANNELS)), dtype=np.float32)
        # The observations of the worlds as they are, and as they were at the end of the episodes just ended.
        self.observations = np.zeros((2, num_envs, observation_size), dtype=np.float32)

        self.cell = self.ints[:, CELL]
        self.step = self.ints[:, STEP]
        self.next_slip = self.ints[:, NEXT_SLIP]
        self.next_event = self.ints[:, NEXT_EVENT]
        self.layout_seed = self.ints[:, LAYOUT_SEED]
        self.streams = self.ints[:, CHANCE : LAYOUTS + 1].view(np.uint64)
        self.terminated = self.ints[:, TERMINATED]
        self.truncated = self.ints[:, TRUNCATED]
        self.reached = self.ints[:, REACHED]
        self.places, self.due, self.tiles, self.visited = np.split(
            self.ints[:, FIXED_INTS:], [slots, 2 * slots, 2 * slots + area], axis=1
        )
        self.internal = self.floats[:, INTERNAL:TOTAL]
        self.total = self.floats[:, TOTAL]
        self.reward = self.floats[:, REWARD]
        self.final = self.floats[:, FINAL:LOW]
        self.low = self.floats[:, LOW:HIGH]
        self.high = self.floats[:, HIGH:SETPOINT]
        self.setpoint = self.floats[:, SETPOINT:SPREAD]
        self.spread = self.floats[:, SPREAD:SHOWN]
        self.shown = self.floats[:, SHOWN:FLOATS]
        self.shown[:] = 1.0

        self.seen = self.maps.reshape(num_envs, -1)
        inside = slice(params.radius, params.radius + params.size)
        self.grid = self.maps[:, inside, inside]
        self.maps[..., SEES_OUTSIDE] = 1.0
        self.grid[..., SEES_OUTSIDE] = 0.0

    def uniform(self, rows: NDArray[np.intp], stream: int = CHANCE) -> NDArray[np.float64]:
        """
        :param rows: the worlds that draw, ``(k,)``
        :param stream: CHANCE or LAYOUTS
        :return: uniform in ``[0, 1)``, ``(k,)``
        """
        streams = self.streams[:, stream - CHANCE]
        streams[rows] += np.uint64(GOLDEN)
        return (splitmix64(streams[rows]) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def schedule(self, rows: NDArray[np.intp]) -> None:
        """
        Set the step at which something next happens.

        :param rows: the worlds, ``(k,)``
        """
        due = self.due[rows]
        self.next_event[rows] = np.minimum(self.next_slip[rows], np.where(due, due, NEVER).min(axis=1, initial=NEVER))
