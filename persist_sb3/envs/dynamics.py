"""The parameters of GridLife, and the constant tables that all of its implementations share."""

import difflib
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

INTERNAL_NAMES = ("energy", "temp", "integrity")
SETPOINT = (0.7, 0.5, 0.9)
WEIGHTS = (1.0, 0.5, 1.5)
#: Energy at which the reserves neither warm nor cool.
RESERVES = SETPOINT[0]
CONSTRAINTS = ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")
ACTIONS = ("stay", "up", "down", "left", "right")
CHANNELS = ("food", "item", "hazard", "heat", "outside")
SEES_FOOD, SEES_ITEM, SEES_HAZARD, SEES_HEAT, SEES_OUTSIDE = range(len(CHANNELS))

MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True)
class GridLifeParams:
    """
    Every number of GridLife's world. Each is a keyword of the environments.

    A step goes: what is due regrows; the agent slips, or moves as it wished; it takes what lies on the tile it is on;
    then energy, temperature and integrity change, each clipped to ``[0, 1]``.

    With ``climate`` there are seasons. The weather comes in spells, which are the same on all tiles: heat waves in
    summer, cold snaps in winter, calm between them. The ``k``-th spell of the year adds
    ``climate * cos(2 pi k / year)`` to the heat. The window does not show it; the agent feels it in its temperature.
    With ``insulation`` reserves keep warm: the temperature relaxes to the tile's heat, the weather's, and
    ``insulation * (energy - 0.7)``, with the energy before the step.

    :param size: side of the square grid, in tiles
    :param radius: how far the agent sees in each direction, in tiles; the window's side is ``2 * radius + 1``
    :param horizon: steps after which an episode is truncated
    :param energy_decay: energy lost a step
    :param energy_drift: by how much ``energy_decay`` grows with each step of an episode
    :param move_cost: energy lost on a step that changes the agent's tile, on top of ``energy_decay``
    :param food_energy: energy gained from one food
    :param temp_rate: share of the gap to the tile's heat that the temperature closes a step
    :param insulation: heat that the agent gains for each unit of energy above 0.7, and lacks below
    :param climate: heat that the spell at midsummer adds to every tile, and that at midwinter takes away
    :param year: spells of weather in a year
    :param spell_every: steps from the end of a spell to the end of the next; an episode begins as one has ended
    :param spell_length: steps that a spell lasts
    :param season: number of the first spell in an episode, 0 at midsummer and ``year / 2`` at midwinter. Default: the
        layout seed modulo ``year``, so that each layout has its season
    :param hazard_damage: integrity lost on a step that ends on a hazard
    :param repair: integrity regained on every other step
    :param slip: probability that a step takes an action drawn uniformly instead of the agent's
    :param hot_spots: number of hot spots
    :param cold_spots: number of cold spots
    :param spot_amplitude: heat of a spot's centre above or below the neutral 0.5
    :param spot_sigma: standard deviation of a spot, in tiles
    :param spot_distance: least distance between two spots' centres, in tiles
    :param hazards: number of hazardous tiles, those around ringed food included
    :param food: number of food tiles
    :param ringed_food: how many of them are in comfortable tiles with hazards around; the others are on harsh tiles
    :param ring_hazards: how many of the 8 tiles around ringed food are hazardous (fewer at the edge of the grid)
    :param food_regrowth: probability a step that an eaten food regrows, on its tile
    :param items: number of item tiles; they are near hazards or on harsh tiles
    :param item_regrowth: probability a step that a collected item comes back, on its tile
    :param comfort: a tile is comfortable if its heat is within this of 0.5; the agent starts on one
    :param harsh: a tile is harsh if its heat is further than this from 0.5
    :param start_spread: internal variables start uniformly within this of the setpoint, or within half of the
        distance to the nearest limit where that is less
    :param scent_range: distance over which the scent of food fades by ``1/e``, in tiles
    :param dead_zone: in the continuous form, how far the larger component of the action must be from zero to move
    :param task: what is rewarded with 1: each item collected, or each tile visited for the first time in the episode
    :raises ValueError: if a value is out of its range
    """

    size: int = 10
    radius: int = 2
    horizon: int = 512
    energy_decay: float = 0.01
    energy_drift: float = 0.0
    move_cost: float = 0.002
    food_energy: float = 0.3
    temp_rate: float = 0.07
    insulation: float = 0.0
    climate: float = 0.0
    year: int = 128
    spell_every: int = 64
    spell_length: int = 20
    season: int | None = None
    hazard_damage: float = 0.08
    repair: float = 0.002
    slip: float = 0.02
    hot_spots: int = 2
    cold_spots: int = 1
    spot_amplitude: float = 0.5
    spot_sigma: float = 1.15
    spot_distance: float = 3.0
    hazards: int = 12
    food: int = 5
    ringed_food: int = 2
    ring_hazards: int = 6
    food_regrowth: float = 0.025
    items: int = 5
    item_regrowth: float = 0.02
    comfort: float = 0.1
    harsh: float = 0.25
    start_spread: float = 0.05
    scent_range: float = 5.0
    dead_zone: float = 0.5
    task: Literal["items", "explore"] = "items"

    def __post_init__(self) -> None:
        for name in ("size", "horizon", "year", "spell_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("radius", "hot_spots", "cold_spots", "hazards", "food", "items", "ringed_food"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in (
            "energy_decay",
            "energy_drift",
            "move_cost",
            "food_energy",
            "temp_rate",
            "climate",
            "hazard_damage",
            "repair",
            "slip",
            "spot_amplitude",
            "food_regrowth",
            "item_regrowth",
            "comfort",
            "harsh",
            "start_spread",
        ):
            self._require(name, 0.0 <= getattr(self, name) <= 1.0, "in [0, 1]")
        for name in ("spot_sigma", "scent_range"):
            self._require(name, getattr(self, name) > 0.0, "positive")
        self._require("spot_distance", self.spot_distance >= 0.0, "at least 0")
        self._require("insulation", 0.0 <= self.insulation < np.inf, "a finite number, at least 0")
        self._require(
            "spell_length", 0 <= self.spell_length <= self.spell_every, f"between 0 and spell_every={self.spell_every}"
        )
        self._require("season", self.season is None or 0 <= self.season < self.year, f"in [0, year={self.year})")
        self._require("dead_zone", 0.0 <= self.dead_zone < 1.0, "in [0, 1)")
        self._require("ringed_food", self.ringed_food <= self.food, f"at most food={self.food}")
        self._require("ring_hazards", 0 <= self.ring_hazards <= 8, "between 0 and 8")
        self._require("task", self.task in ("items", "explore"), "'items' or 'explore'")
        needed = self.hazards + self.food + self.items + 1
        if needed > self.size**2:
            raise ValueError(
                f"size={self.size} has {self.size**2} tiles, but hazards + food + items + the agent need {needed}: "
                "make the grid larger or put less in it"
            )

    def _require(self, name: str, holds: bool, demand: str) -> None:
        if not holds:
            raise ValueError(f"GridLife's {name} must be {demand}, not {getattr(self, name)!r}")

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> "GridLifeParams":
        """
        :param keywords: some of the parameters
        :return: these, and the defaults of the others
        :raises TypeError: if a keyword is none of GridLife's, naming the nearest that is
        """
        known = [field.name for field in fields(cls)]
        for key in keywords:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"its parameters are {', '.join(known)}"
                raise TypeError(f"GridLife has no parameter {key!r}: {hint}")
        return cls(**keywords)

    @property
    def slots(self) -> int:
        """Number of tiles whose content comes and goes: food first, then items."""
        return self.food + self.items


class Position(NamedTuple):
    """Where an agent is."""

    row: int
    column: int

    def __deepcopy__(self, memo: dict[int, object]) -> "Position":
        # SB3's DummyVecEnv deep-copies infos at every step, and numbers need no copy.
        return self


@lru_cache(maxsize=32)
def positions(size: int) -> tuple[Position, ...]:
    """
    :param size: of the world, in tiles
    :return: row and column of each tile, ``size ** 2`` of them
    """
    return tuple(Position(*divmod(cell, size)) for cell in range(size**2))


class Tables(NamedTuple):
    """
    Constants of one set of parameters. ``A = size ** 2`` tiles are numbered row by row.

    Whatever needs a transcendental function is here, computed once: scalar, NumPy and compiled code then do the same
    additions and multiplications on the same numbers, and agree to the last bit.
    """

    targets: NDArray[np.int64]  # (5, A) tile that an action leads to
    masks: NDArray[np.bool_]  # (A, 5) actions that do not run into the edge
    around: NDArray[np.int64]  # (A, 8) neighbours, A where there is none
    far: NDArray[np.bool_]  # (A, A) further apart than spot_distance
    spot: NDArray[np.float64]  # (A, A) heat that a hot spot on the first tile adds to the second
    scent: NDArray[np.float64]  # (2 size - 1, 2 size - 1, 2) scent of food at an offset in rows and columns
    food_wait: NDArray[np.float64]  # (horizon,) probability that regrowth takes at most 1, 2, ... steps
    item_wait: NDArray[np.float64]  # (horizon,) the same for items
    slip_wait: NDArray[np.float64]  # (horizon,) the same for the next slip
    spells: NDArray[np.float64]  # (year,) heat that each spell of weather adds
    seen: NDArray[np.int64]  # (A,) where a tile's first channel is in the flattened maps
    window: NDArray[np.int64]  # (A, C * W * W) where the window around a tile is in the flattened maps


def waiting_times(probability: float, horizon: int) -> NDArray[np.float64]:
    """
    The number of steps until an event of constant probability is geometric. The law has no memory, so drawing the wait
    at once is the same as tossing a coin each step, and costs nothing on the steps where nothing happens.

    :param probability: of the event, a step
    :param horizon: waits longer than this are as good as never
    :return: ``P(wait <= k)`` for ``k = 1 ... horizon``; the wait of a uniform ``u`` is ``1 + #{k : P(wait <= k) <= u}``
    """
    return 1.0 - np.power(1.0 - probability, np.arange(1, horizon + 1))


def first_spell(params: GridLifeParams, layout_seed: Any) -> Any:
    """
    :param params: the world's parameters
    :param layout_seed: of any shape
    :return: number of the first spell of weather in an episode on that layout, of the same shape
    """
    return layout_seed % params.year if params.season is None else np.full_like(layout_seed, params.season)


def weather(params: GridLifeParams, first: Any, step: Any) -> NDArray[np.float64]:
    """
    :param params: the world's parameters
    :param first: number of the first spell in the episode, of any shape
    :param step: number of the step in the episode, from 1, likewise
    :return: heat that the weather adds to every tile
    """
    past, hour = np.divmod(np.asarray(step) - 1, params.spell_every)
    spell = tables(params).spells[(first + past) % params.year]
    return np.where(hour >= params.spell_every - params.spell_length, spell, 0.0)


@lru_cache(maxsize=32)
def tables(params: GridLifeParams) -> Tables:
    """
    :param params: the world's parameters
    :return: its constants, read-only
    """
    size, radius = params.size, params.radius
    area, padded, side = size**2, size + 2 * radius, 2 * radius + 1
    row, col = np.divmod(np.arange(area), size)
    targets = np.stack([np.clip(row + dy, 0, size - 1) * size + np.clip(col + dx, 0, size - 1) for dy, dx in MOVES])
    masks = np.arange(area)[:, None] != targets.T
    masks[:, 0] = True
    around = np.full((area, 8), area)
    for k, (dy, dx) in enumerate(_AROUND):
        y, x = row + dy, col + dx
        inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
        around[inside, k] = (y * size + x)[inside]
    squared = (row[:, None] - row) ** 2 + (col[:, None] - col) ** 2
    offset = np.arange(1 - size, size)
    down, right = np.meshgrid(offset, offset, indexing="ij")
    steps = np.maximum(np.abs(down) + np.abs(right), 1)
    strength = np.exp(-(steps - 1) / params.scent_range) / steps
    channel, y, x = np.meshgrid(np.arange(len(CHANNELS)), np.arange(side), np.arange(side), indexing="ij")
    corner = (y * padded + x) * len(CHANNELS) + channel
    result = Tables(
        targets=targets.astype(np.int64),
        masks=masks,
        around=around,
        far=squared > params.spot_distance**2,
        spot=params.spot_amplitude * np.exp(-squared / (2.0 * params.spot_sigma**2)),
        scent=np.stack([down * strength, right * strength], axis=-1),
        food_wait=waiting_times(params.food_regrowth, params.horizon),
        item_wait=waiting_times(params.item_regrowth, params.horizon),
        slip_wait=waiting_times(params.slip, params.horizon),
        spells=params.climate * np.cos(2.0 * np.pi * np.arange(params.year) / params.year),
        seen=((row + radius) * padded + col + radius) * len(CHANNELS),
        window=corner.ravel() + ((row * padded + col) * len(CHANNELS))[:, None],
    )
    for array in result:
        array.flags.writeable = False
    return result
