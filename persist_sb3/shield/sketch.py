"""The outline of a search: one future without chance, in the place of many with it."""

import numpy as np

from persist_sb3.models.imagination import Dynamics, begin
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.shield.rollouts import Backup


class Sketch:
    """
    What a search would see of an action if it imagined a single future, ``steps`` long, in which nothing is left to
    chance: the margins after every step, and what the backup says of the state that was reached.

    :param spec: the environment's state and actions
    :param dynamics: what becomes of a state; always the first member's opinion
    :param backup: what the agent does after the action
    :param steps: how many
    """

    def __init__(self, spec: StateSpec, dynamics: Dynamics, backup: Backup, steps: int) -> None:
        self._spec = spec
        self._dynamics = dynamics
        self._backup = backup
        self.steps = steps

    def __call__(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: scaled margins, and values if the backup knows them, of each step, ``(r, F)``
        """
        viability, seen = self._spec.viability, []
        members = np.zeros(len(state), dtype=np.intp)
        dynamics = begin(self._dynamics, state)
        for _ in range(self.steps):
            state = dynamics.step(state, action, members, None)
            course = self._backup(state)
            action = course.action
            seen.append(viability.margins(state[:, self._spec.observation_dim :]).astype(np.float32))
            if course.values is not None:
                seen.append(course.values)
        return np.concatenate(seen, axis=1)
