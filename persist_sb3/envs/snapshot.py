"""The complete state of GridLife's worlds, to be restored later."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.layout import padded_maps


@dataclass(frozen=True, eq=False)
class Snapshot:
    """
    One world (as below), or ``n`` of them with a leading axis, from which ``snapshot[index]`` takes some.

    It holds all that the future of an episode depends on, chance included, but not what is configured from outside:
    constraints, tolerance, hidden variables.

    :param params: the world's parameters
    :param internal: internal variables, ``(3,)``
    :param total: reward of the episode so far
    :param cell: the agent's tile, numbered row by row
    :param step: steps of the episode so far
    :param alive: whether the episode goes on
    :param next_slip: the step of the next slip
    :param layout_seed: the layout
    :param streams: states of the generators of chance and of layout seeds, ``(2,)``
    :param heat: of each tile, ``(A,)``
    :param hazard: whether a tile is hazardous, ``(A,)``
    :param places: tiles of the food, then of the items, ``(food + items,)``
    :param due: the step at which an eaten food or collected item comes back, 0 where it is there, ``(food + items,)``
    :param visited: tiles that the agent has been on, ``(A,)``; kept for ``task="explore"``
    """

    params: GridLifeParams
    internal: NDArray[np.float64]
    total: NDArray[np.float64]
    cell: NDArray[np.int64]
    step: NDArray[np.int64]
    alive: NDArray[np.bool_]
    next_slip: NDArray[np.int64]
    layout_seed: NDArray[np.int64]
    streams: NDArray[np.uint64]
    heat: NDArray[np.float32]
    hazard: NDArray[np.bool_]
    places: NDArray[np.int64]
    due: NDArray[np.int64]
    visited: NDArray[np.bool_]

    def __getitem__(self, index: Any) -> "Snapshot":
        arrays = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name != "params"}
        return Snapshot(params=self.params, **{name: np.array(array) for name, array in arrays.items()})

    def __len__(self) -> int:
        return len(self.cell)

    def require(self, params: GridLifeParams) -> None:
        """
        :param params: of the worlds that this is to be restored in
        :raises ValueError: if they are not those of its own worlds
        """
        if self.params != params:
            raise ValueError(f"the snapshot is of a world with {self.params}; this one has {params}")

    def require_one(self) -> "Snapshot":
        """
        :return: the same
        :raises ValueError: if it is of several worlds
        """
        if self.cell.shape != ():
            raise ValueError(f"the snapshot is of {len(self)} worlds: restore one of them, snapshot[i]")
        return self

    def maps(self) -> NDArray[np.float32]:
        """
        :return: what there is to see, as :func:`~persist_sb3.envs.layout.padded_maps` shows it,
            ``(n, side, side, 5)``; n is 1 for one world
        """
        parts = (np.atleast_2d(part) for part in (self.heat, self.hazard, self.places, self.due == 0))
        return padded_maps(self.params, *parts)


def join(worlds: Sequence[Snapshot]) -> Snapshot:
    """
    :param worlds: one world each, of the same parameters, at least one
    :return: them as one batch
    :raises ValueError: if their parameters differ
    """
    for world in worlds:
        world.require_one().require(worlds[0].params)
    arrays = {
        field.name: np.stack([getattr(world, field.name) for world in worlds])
        for field in fields(Snapshot)
        if field.name != "params"
    }
    return Snapshot(params=worlds[0].params, **arrays)
