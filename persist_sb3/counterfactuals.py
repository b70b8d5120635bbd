"""Where a step would have led with other internal variables: what an agent learns about death without dying."""

from collections.abc import Mapping

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.models.linear import LinearFit
from persist_sb3.models.spec import StateSpec
from persist_sb3.paths import locate, parse_path

Floats = NDArray[np.float64]

#: Probability with which each variable is drawn anew.
REDRAWN = 0.5


class Counterfactuals:
    """
    An agent that steps on a thorn at full health could have done so at its last. What surrounds it, what it did and
    what chance brought would have been the same; only the internal variables would have been others, and with them
    whether it survived. So every step that was survived tells of deaths (data augmentation by a locally factored
    dynamics, as in Pitis, Creager and Garg, "Counterfactual data augmentation using locally factored dynamics", NeurIPS
    2020).

    With ``x~`` in the place of ``x``, the step leads to ``x~' = x' + J (x~ - x)``. ``J = I + d(x' - x)/dx`` is of a
    linear regression of the change on all of ``[o, x, a]``, which does not blame ``x`` for what the observation and the
    action explain. What the step owes to everything else, chance included, is in ``x'`` already. That is exact where
    the change is linear in ``x`` and what multiplies ``x`` is the same everywhere: levels that are drained and filled,
    and those that relax towards their surroundings. As long as the regression has too little data, ``J`` is the
    identity.

    It is assumed that ``x`` changes nothing else: neither what surrounds the agent and how it moves, nor the task's
    reward.

    :param spec: the environment's state and actions
    :param entries: where the observation shows each internal variable, by name
    :param fit: a regression to go on with. Default: a new one
    :raises ValueError: if the observation does not show every internal variable as a number
    """

    def __init__(self, spec: StateSpec, entries: Mapping[str, str], fit: LinearFit | None = None) -> None:
        self.spec = spec
        dims, space = spec.viability.dims, spec.observation_space
        hidden = [name for name in dims if name not in entries]
        if hidden:
            raise ValueError(f"the observation does not show {', '.join(hidden)}, so nobody sees it change")
        self._entries = [locate(parse_path(entries[name])[1], space) for name in dims]
        for name, entry in zip(dims, self._entries, strict=True):
            inner = space
            for key in entry.keys:
                inner = inner[key]  # type: ignore[index]
            if not (isinstance(inner, spaces.Box) and np.issubdtype(inner.dtype, np.floating)):
                raise ValueError(f"the observation shows {name} in {inner}, which does not hold every number")
        # Where s = [o, x] has each variable: in x, and in the observation.
        shown = [entry.columns(space)[0] for entry in self._entries]
        self._columns = np.array([shown, range(spec.observation_dim, spec.state_dim)])
        d = len(dims)
        self.fit = LinearFit(1, spec.state_dim + spec.action_dim, d) if fit is None else fit
        self._low, self._high = spec.viability.box()

    def read(self, observation: Batch) -> Floats:
        """
        :param observation: ``(n, ...)``
        :return: the internal variables that it shows, ``(n, d)``
        """
        return np.stack([entry.read(observation) for entry in self._entries], axis=1, dtype=np.float64)

    def write(self, observation: Batch, x: Floats) -> Batch:
        """
        :param observation: ``(n, ...)``, left as it is
        :param x: ``(n, d)``
        :return: the same, which shows these internal variables
        """
        for entry, column in zip(self._entries, x.T, strict=True):
            observation = entry.write(observation, column)
        return observation

    def learn(self, observation: Batch, action: NDArray[np.float32], next_observation: Batch) -> None:
        """
        :param observation: before a step, ``(n, ...)``
        :param action: executed, encoded, ``(n, A)``
        :param next_observation: after it, ``(n, ...)``
        """
        x = self.read(observation)
        given = np.concatenate([self.spec.encode(observation, x), action], axis=1)
        change = self.read(next_observation) - x
        self.fit.update(torch.from_numpy(given), torch.from_numpy(change), torch.zeros(len(x), dtype=torch.int64))

    @property
    def jacobian(self) -> Floats:
        """``J``: by how much ``x'_j`` is greater where ``x_i`` is greater by 1, in row ``i`` and column ``j``."""
        slopes = self.fit.weight[0].numpy()[self._columns].sum(axis=0, dtype=np.float64)
        jacobian: Floats = np.eye(len(slopes)) + slopes
        return jacobian

    def redraw(self, x: Floats, draws: Floats) -> Floats:
        """
        Draw variables anew, each with probability :data:`REDRAWN`, uniformly between the limits; where there is none,
        up to the furthest value at hand. Where that does not satisfy all constraints ``x`` stays as it is.

        :param x: ``(n, d)``
        :param draws: of chance, uniform in ``[0, 1)``: whether, and to what, ``(2, n, d)``
        :return: ``x~``, ``(n, d)``
        """
        low = np.where(np.isfinite(self._low), self._low, x.min(axis=0))
        high = np.where(np.isfinite(self._high), self._high, x.max(axis=0))
        drawn = np.where(draws[0] < REDRAWN, low + (high - low) * draws[1], x)
        return np.where(self.spec.viability.contains(drawn)[:, None], drawn, x)

    def successor(self, x: Floats, x_next: Floats, other: Floats) -> Floats:
        """
        :param x: before a step, ``(n, d)``
        :param x_next: after it, ``(n, d)``
        :param other: ``x~``, ``(n, d)``
        :return: ``x~'``, within the variables' physical range, ``(n, d)``
        """
        viability = self.spec.viability
        return np.clip(x_next + (other - x) @ self.jacobian, viability.low, viability.high)
