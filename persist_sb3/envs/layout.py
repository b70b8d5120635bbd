"""Layouts of GridLife: where the heat, the food, the hazards and the items are. A pure function of a layout seed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import (
    CHANNELS,
    SEES_FOOD,
    SEES_HAZARD,
    SEES_HEAT,
    SEES_ITEM,
    SEES_OUTSIDE,
    GridLifeParams,
    tables,
)
from persist_sb3.streams import splitmix64

#: First and last-plus-one layout seed of each split. They are disjoint, so no layout is both trained and tested on.
SPLITS = {
    "train": (0, 1_000_000_000),
    "validation": (1_000_000_000, 2_000_000_000),
    "test": (2_000_000_000, 3_000_000_000),
}

GOLDEN = 0x9E3779B97F4A7C15
AROUND = 8


class Layouts(NamedTuple):
    """
    ``k`` layouts. Tiles are numbered row by row, ``A = size ** 2`` of them.

    :param heat: ``(k, A)`` in ``[0, 1]``, 0.5 is neutral
    :param hazard: ``(k, A)``
    :param places: ``(k, food + items)`` tile of each food (the ringed ones first), then of each item
    :param start: ``(k,)`` the agent's first tile
    """

    heat: NDArray[np.float32]
    hazard: NDArray[np.bool_]
    places: NDArray[np.int64]
    start: NDArray[np.int64]


def draws_per_layout(params: GridLifeParams) -> int:
    """
    :param params: the world's parameters
    :return: how many uniform numbers a layout is made of
    """
    spots = params.hot_spots + params.cold_spots
    return spots + params.food + AROUND * params.ringed_food + params.hazards + params.items + 1


def pick(allowed: NDArray[np.bool_], otherwise: NDArray[np.bool_], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """
    Pick a tile uniformly.

    :param allowed: tiles to pick from, ``(k, A)``
    :param otherwise: tiles to pick from where none is allowed, ``(k, A)``
    :param u: uniform in ``[0, 1)``, ``(k,)``
    :return: ``(k,)``
    """
    upto = allowed.cumsum(axis=1, dtype=np.int32)
    none = upto[:, -1] == 0
    if none.any():
        upto[none] = otherwise[none].cumsum(axis=1)
    rank = (u * upto[:, -1]).astype(np.int32)
    return (upto > rank[:, None]).argmax(axis=1)


def generate(params: GridLifeParams, seeds: NDArray[np.uint64]) -> Layouts:
    """
    :param params: the world's parameters
    :param seeds: layout seeds, ``(k,)``
    :return: their layouts; the same seed gives the same layout, whatever the others are
    """
    table, area, k = tables(params), params.size**2, len(seeds)
    counter = splitmix64(seeds)[:, None] + np.arange(1, draws_per_layout(params) + 1, dtype=np.uint64) * np.uint64(
        GOLDEN
    )
    uniforms = iter(((splitmix64(counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53).T)
    everyone = np.arange(k)
    anywhere = np.ones((k, area), dtype=bool)

    warmth = np.full((k, area), 0.5)
    apart = anywhere.copy()
    for spot in range(params.hot_spots + params.cold_spots):
        centre = pick(apart, anywhere, next(uniforms))
        apart &= table.far[centre]
        if spot < params.hot_spots:
            warmth += table.spot[centre]
        else:
            warmth -= table.spot[centre]
    heat = np.clip(warmth, 0.0, 1.0).astype(np.float32)
    off = np.abs(heat.astype(np.float64) - 0.5)
    comfortable, harsh = off <= params.comfort, off > params.harsh

    free = anywhere.copy()
    places = np.empty((k, params.slots), dtype=np.int64)
    for slot in range(params.food):
        wanted = comfortable if slot < params.ringed_food else harsh
        places[:, slot] = pick(free & wanted, free, next(uniforms))
        free[everyone, places[:, slot]] = False

    # One column more than there are tiles stands for all that lies outside.
    open_ground = np.concatenate([free, np.zeros((k, 1), dtype=bool)], axis=1)
    hazard = np.zeros((k, area + 1), dtype=bool)
    placed = np.zeros(k, dtype=np.int64)
    for slot in range(params.ringed_food):
        order = np.stack([next(uniforms) for _ in range(AROUND)], axis=1)
        first = (order[:, :, None] > order[:, None, :]).sum(axis=2) < params.ring_hazards
        ring = everyone[:, None], table.around[places[:, slot]]
        new = first & open_ground[ring] & ~hazard[ring]
        new &= placed[:, None] + new.cumsum(axis=1) <= params.hazards
        hazard[ring] |= new
        placed += new.sum(axis=1)
    hazard = hazard[:, :area]
    free &= ~hazard
    for _ in range(params.hazards):
        u = next(uniforms)
        short = everyone[placed < params.hazards]
        if len(short):
            tile = pick(free[short], free[short], u[short])
            hazard[short, tile] = True
            free[short, tile] = False
            placed[short] += 1

    near = _spread(hazard.reshape(k, params.size, params.size)).reshape(k, area)
    for slot in range(params.food, params.slots):
        places[:, slot] = pick(free & (harsh | near), free, next(uniforms))
        free[everyone, places[:, slot]] = False
    start = pick(free & comfortable, free, next(uniforms))
    return Layouts(heat, hazard, places, start)


def _spread(grid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tiles that are marked or have a marked one among their 8 neighbours, ``(k, size, size)``."""
    wide = grid.copy()
    wide[:, :, 1:] |= grid[:, :, :-1]
    wide[:, :, :-1] |= grid[:, :, 1:]
    both = wide.copy()
    both[:, 1:] |= wide[:, :-1]
    both[:, :-1] |= wide[:, 1:]
    return both


def padded_maps(
    params: GridLifeParams,
    heat: NDArray[np.float32],
    hazard: NDArray[np.bool_],
    places: NDArray[np.int64],
    present: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """
    :param params: the world's parameters
    :param heat: of each tile, ``(k, A)``
    :param hazard: whether a tile is hazardous, ``(k, A)``
    :param places: tile of each food, then of each item, ``(k, food + items)``
    :param present: which of these are there, ``(k, food + items)``
    :return: what there is to see, ``(k, size + 2 * radius, size + 2 * radius, 5)``: channels food, item, hazard, heat,
        outside of the grid and a margin of ``radius`` tiles around it
    """
    k, size, radius, food = len(heat), params.size, params.radius, params.food
    padded = size + 2 * radius
    maps = np.zeros((k, padded, padded, len(CHANNELS)), dtype=np.float32)
    maps[..., SEES_OUTSIDE] = 1.0
    grid = maps[:, radius : radius + size, radius : radius + size]
    row, col = np.divmod(places, size)
    everyone = np.arange(k)[:, None]
    grid[everyone, row[:, :food], col[:, :food], SEES_FOOD] = present[:, :food]
    grid[everyone, row[:, food:], col[:, food:], SEES_ITEM] = present[:, food:]
    grid[..., SEES_HAZARD] = hazard.reshape(k, size, size)
    grid[..., SEES_HEAT] = heat.reshape(k, size, size)
    grid[..., SEES_OUTSIDE] = 0.0
    return maps
