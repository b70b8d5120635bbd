"""What of a later state counts as an outcome of the agent's actions, and how sharply it is perceived."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.infos import Path
from persist_sb3.models.heads import Heads, as_slice
from persist_sb3.models.imagination import Dynamics, begin
from persist_sb3.models.networks import VARIANCE_FLOOR
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.paths import locate, parse_path, write_path


@runtime_checkable
class Probabilistic(Protocol):
    """Dynamics that say how likely what follows is."""

    def moments(self, state: Floats, action: Floats, members: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """See :meth:`persist_sb3.models.imagination.LearnedDynamics.moments`."""


class ImaginationError(RuntimeError):
    """A model imagined something that is not a number."""


class Outcomes:
    """
    Some columns of the state ``s = [o, x]``, seen through a sensor with Gaussian noise. Without noise an agent in a
    continuous world could tell apart whatever differs at all, and its empowerment would be infinite, or ``log N``
    everywhere.

    :param spec: the environment's state
    :param columns: which of the state, ``(m,)``
    :param resolution: standard deviation of the sensor's noise in a number, in standard deviations of that number
    :raises ValueError: if there is no column, or the resolution is not positive
    """

    def __init__(self, spec: StateSpec, columns: Sequence[int], resolution: float = 0.05) -> None:
        if not len(columns) or min(columns) < 0 or max(columns) >= spec.state_dim:
            raise ValueError(f"columns={list(columns)} must be some of the state's {spec.state_dim}")
        if not 0.0 < resolution < np.inf:
            raise ValueError(f"resolution={resolution} must be positive and finite")
        self._spec = spec
        self.columns = np.unique(columns)
        self.resolution = resolution
        heads = Heads.of_space(spec.observation_space)
        numeric = np.concatenate([heads.numeric, np.arange(spec.observation_dim, spec.state_dim)])
        #: Where the numbers are among the columns, the entries of one-hot codes, and what is 0 or 1.
        self.numeric, self.one_hot, self.binary = (
            as_slice(np.flatnonzero(np.isin(self.columns, kind))) for kind in (numeric, heads.one_hot, heads.binary)
        )
        self._columns = as_slice(self.columns)
        groups = np.split(heads.one_hot, np.cumsum(heads.sizes)[:-1]) if heads.sizes else []
        self._groups = [np.flatnonzero(np.isin(self.columns, group)) for group in groups]
        #: Variance of the sensor's noise, ``(m,)``; 0 where there is a category.
        self.sensor = np.zeros(len(self.columns))
        self.calibrate(np.ones(spec.state_dim, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.columns)

    def calibrate(self, variance: Floats) -> None:
        """
        :param variance: of the state, ``(D,)``
        """
        measured = variance[self.columns].astype(np.float64) + VARIANCE_FLOOR
        self.sensor[self.numeric] = self.resolution**2 * measured[self.numeric]

    def perceive(self, mean: Floats, var: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """
        :param mean: of the state, ``(..., D)``
        :param var: of the state, ``(..., D)``
        :return: mean and variance of what is perceived, ``(..., m)`` both
        """
        return mean[..., self._columns].astype(np.float64), var[..., self._columns] + self.sensor

    def draw(
        self, mean: NDArray[np.float64], var: NDArray[np.float64], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """
        :param mean: of what is perceived: of numbers their mean, of categories their probabilities, ``(..., m)``
        :param var: its variance, ``(..., m)``
        :param generator: draws it
        :return: ``(..., m)``
        """
        outcome = np.empty(mean.shape, dtype=np.float32)
        number = mean[..., self.numeric]
        noise = generator.standard_normal(number.shape)
        outcome[..., self.numeric] = number + np.sqrt(var[..., self.numeric]) * noise
        outcome[..., self.binary] = generator.random(mean[..., self.binary].shape) < mean[..., self.binary]
        for group in self._groups:
            if len(group):
                total = mean[..., group].cumsum(axis=-1)
                u = generator.random((*total.shape[:-1], 1)) * total[..., -1:]
                outcome[..., group] = np.eye(len(group))[(u >= total).sum(axis=-1).clip(max=len(group) - 1)]
        return outcome

    def check(self, state: Floats, step: int) -> None:
        """
        :param state: imagined, ``(n, D)``
        :param step: after how many actions
        :raises ImaginationError: naming the model and the entry, if something is not finite
        """
        finite = np.isfinite(state).all(axis=0)
        if finite.all():
            return
        column, spec = int(np.argmin(finite)), self._spec
        if column < spec.observation_dim:
            what, who = f"column {column} of the flattened observation", "the world model"
        else:
            what = f"the internal variable {spec.viability.dims[column - spec.observation_dim]!r}"
            who = "the internal model, or the world model that shows it,"
        bad = state[:, column][~np.isfinite(state[:, column])][0]
        raise ImaginationError(
            f"empowerment is imagined with models, and {who} predicts {bad} for {what} at imagined step {step}: it has "
            "diverged. Lower the learning_rate of the callback that trains it, or look for values far off in what the "
            "environment returns"
        )


def foresee(
    dynamics: Dynamics,
    outcomes: Outcomes,
    state: Floats,
    sequences: Floats,
    members: NDArray[np.intp],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    :param dynamics: how the state goes on
    :param outcomes: what of it is perceived
    :param state: ``(n, D)``
    :param sequences: what is done in each, ``(n, k, A)``
    :param members: who imagines it, ``(n,)``
    :param generator: draws what chance brings
    :return: mean and variance of what is perceived in the end, given the state before; of dynamics that do not say how
        likely things are, of one such end, ``(n, m)`` both
    :raises ImaginationError: if something is not finite
    """
    last = sequences.shape[1] - 1
    dynamics = begin(dynamics, state)
    for step in range(last):
        state = dynamics.step(state, sequences[:, step], members, generator)
        outcomes.check(state, step + 1)
    if isinstance(dynamics, Probabilistic):
        mean, var = dynamics.moments(state, sequences[:, last], members)
        outcomes.check(var, last + 1)
    else:
        mean = dynamics.step(state, sequences[:, last], members, generator)
        var = np.zeros_like(mean)
    outcomes.check(mean, last + 1)
    return outcomes.perceive(mean, var)


def check_gradient(jacobian: torch.Tensor) -> None:
    """
    :param jacobian: ``(n, m, p)``
    :raises ImaginationError: if it is not finite
    """
    if not torch.isfinite(jacobian).all():
        raise ImaginationError(
            "empowerment is imagined with models, and the gradient of the imagined state by the actions is not finite: "
            "the world model has diverged. Lower the learning_rate of the callback that trains it"
        )


def target_columns(spec: StateSpec, target: Collection[str | int] | None, shown: Collection[int]) -> list[int]:
    """
    :param spec: the environment's state
    :param target: what counts: names of internal variables, paths into the observation (``"obs.window"``,
        ``"obs[2]"``), or columns of the flattened state. Default: the whole state
    :param shown: internal variables that the observation shows: what is there twice counts once
    :return: columns of the state
    :raises ValueError: if there is no such variable, path or column
    """
    if target is None:
        hidden = [spec.observation_dim + i for i in range(spec.internal_dim) if i not in shown]
        return [*range(spec.observation_dim), *hidden]
    if isinstance(target, str):
        raise ValueError(f"target={target!r} must be a list: use [{target!r}]")
    columns: list[int] = []
    for part in target:
        if isinstance(part, int):
            if not 0 <= part < spec.state_dim:
                raise ValueError(f"target={list(target)}: the state has no column {part}; it has {spec.state_dim}")
            columns.append(part)
        elif part in spec.viability.dims:
            columns.append(spec.observation_dim + list(spec.viability.dims).index(part))
        elif part.startswith("obs"):
            columns += _under(parse_path(part)[1], spec.observation_space)
        else:
            raise ValueError(
                f"target={list(target)}: {part!r} is neither an internal variable ({', '.join(spec.viability.dims)}) "
                "nor a path into the observation ('obs.window', 'obs[2]')"
            )
    return sorted(set(columns))


def _under(path: Path, space: spaces.Space[Any]) -> list[int]:
    """
    :param path: into an observation, to a number, an array, or a Dict or Tuple of such
    :param space: the observation's space
    :return: columns of the flattened observation that it leads to
    """
    inner, offset = space, 0
    for key in path:
        if not isinstance(inner, spaces.Dict | spaces.Tuple):
            return locate(path, space).columns(space)
        parts = dict(inner.spaces.items()) if isinstance(inner, spaces.Dict) else dict(enumerate(inner.spaces))
        if key not in parts:
            raise ValueError(f"target {write_path('obs', path)!r} does not exist: at {key!r} there are {list(parts)}")
        for name, part in parts.items():
            if name == key:
                inner = part
                break
            offset += spaces.flatdim(part)
    return list(range(offset, offset + spaces.flatdim(inner)))
