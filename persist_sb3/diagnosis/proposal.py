"""A first guess at internal variables and their limits, from what random actions show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from persist_sb3.constraints import RESERVED
from persist_sb3.diagnosis.environment import is_image
from persist_sb3.diagnosis.probe import Play, series
from persist_sb3.internal import SourceError
from persist_sb3.paths import locate, parse_path
from persist_sb3.viability import ViabilitySet

#: Variables that are proposed at most.
MOST = 3
#: Distinct values below which a number is a flag or a choice.
FEWEST_VALUES = 8
#: Part of the way from where episodes begin to the farthest value seen at which a limit is proposed.
REACH = 0.75
#: Keys of an info that are counters, labels and scores.
NOT_A_VARIABLE = re.compile(r"reward|return|score|success|seed|step|time|count|cost|index|prob", re.IGNORECASE)
#: What the least deviation from a limit to the setpoint costs: half a unit a step.
COST_AT_LIMIT = 0.5


@dataclass(frozen=True)
class Variable:
    """
    :param name: of the internal variable
    :param source: path of it, or the parameters of a simulated variable; None where the environment publishes all
    :param mu: setpoint
    :param w: weight of its deviation
    :param low: least value that it can have; None where the environment or the simulation says so
    :param high: greatest value
    """

    name: str
    source: str | dict[str, Any] | None
    mu: float
    w: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Proposal:
    """
    :param variables: the internal variables
    :param constraints: on them, each with what is known about where it comes from
    :param declared: the environment says itself what they are
    :param append: the agent does not see them otherwise
    :param late: paths of numbers that cannot be variables, since the environment does not show them at reset
    """

    variables: list[Variable]
    constraints: list[tuple[str, str]]
    declared: bool = False
    append: bool = False
    late: tuple[str, ...] = ()


#: Lower and upper limit of a variable, None where it has none.
Limits = tuple[float | None, float | None]


def propose(env: gym.Env[Any, Any], plays: Sequence[Play]) -> Proposal:
    """
    What the environment declares; or else numbers of the info, or else of the observation: those that move away from
    where episodes begin, the ones first that are the farthest out where episodes terminate; or else a battery that is
    simulated beside the environment.

    :param env: the environment
    :param plays: episodes under random actions
    :return: variables, with limits between where episodes begin and the farthest values seen
    """
    if env.has_wrapper_attr("viability"):
        return _declared(env.get_wrapper_attr("viability"), plays)
    late = _late(plays)
    for root in ("info", "obs"):
        found = []
        for path in plays[0].numbers[0]:
            if path.startswith(root) and not (root == "info" and NOT_A_VARIABLE.search(path)):
                guess = _guess(path, env.observation_space, plays)
                if guess is not None:
                    found.append((_far_out(plays, path), path, *guess))
        if found:
            found.sort(key=lambda row: -row[0])
            return replace(_named(found[:MOST], append=root == "info"), late=late)
    return replace(_battery(env.action_space, append=not is_image(env.observation_space)), late=late)


def _late(plays: Sequence[Play]) -> tuple[str, ...]:
    """
    :param plays: episodes
    :return: paths of what could be a variable of the info, were it there at reset
    """
    first = plays[0].numbers[0]
    paths = dict.fromkeys(path for one in plays for moment in one.numbers[1:] for path in moment)
    return tuple(
        path for path in paths if path.startswith("info") and path not in first and not NOT_A_VARIABLE.search(path)
    )


def _named(found: Sequence[tuple[float, str, Variable, Limits, str]], append: bool) -> Proposal:
    """
    :param found: rank, path, variable without a name, limits and where these come from
    :param append: see :class:`Proposal`
    :return: the proposal, in which no two variables have the same name
    """
    short = [_name(path) for _, path, *_ in found]
    names = [_name(path, whole=short.count(name) > 1) for (_, path, *_), name in zip(found, short, strict=True)]
    variables = [replace(variable, name=name) for name, (_, _, variable, _, _) in zip(names, found, strict=True)]
    constraints = [(_limited(name, limits), seen) for name, (_, _, _, limits, seen) in zip(names, found, strict=True)]
    return Proposal(variables, constraints, append=append)


def _limited(name: str, limits: Limits) -> str:
    low, high = limits
    if low is not None and high is not None:
        return f"{name} in [{low:g}, {high:g}]"
    return f"{name} >= {low:g}" if low is not None else f"{name} <= {high:g}"


def _declared(viability: ViabilitySet, plays: Sequence[Play]) -> Proposal:
    mu = viability.mu
    if mu is None:
        mu = np.median([one.internal[0] for one in plays if one.internal is not None], axis=0)
    low, high = viability.box()
    rooms = np.minimum(mu - low, high - mu)
    variables = [
        Variable(
            name, None, _rounded(float(mu[j])), _rounded(COST_AT_LIMIT / rooms[j] ** 2) if _room(rooms[j]) else 1.0
        )
        for j, name in enumerate(viability.dims)
    ]
    return Proposal(variables, [(name, "declared by the environment") for name in viability.names], declared=True)


def _room(room: float) -> bool:
    return bool(0.0 < room < np.inf)


def _guess(
    path: str, observation_space: spaces.Space[Any], plays: Sequence[Play]
) -> tuple[Variable, Limits, str] | None:
    """
    :param path: of a number
    :param observation_space: of the environment
    :param plays: episodes
    :return: a variable, its limits, and where they come from; None if it cannot be one, because it is a flag, begins
        anywhere, or hardly moves
    """
    values = series(plays, path)
    starts = np.array([one.numbers[0].get(path, np.nan) for one in plays])
    if not np.isfinite(values).all() or len(np.unique(values)) < FEWEST_VALUES:
        return None
    root, inner = parse_path(path)
    bounds = (-np.inf, np.inf)
    if root == "obs":
        try:
            bounds = locate(inner, observation_space).bounds(observation_space)
        except SourceError:
            return None
    start = float(starts.min()), float(starts.max())
    reached = float(values.min()), float(values.max())
    limits = [_rounded(begin + REACH * (end - begin)) for begin, end in zip(start, reached, strict=True)]
    # A side to which the variable hardly moves, or at which the observation ends, gets no limit of its own.
    moves = [
        abs(limit - begin) > 0.25 * (start[1] - start[0]) + 1e-6 for limit, begin in zip(limits, start, strict=True)
    ]
    below, above = moves[0] and limits[0] > bounds[0], moves[1] and limits[1] < bounds[1]
    if not (below or above):
        return None
    mu = _rounded(float(np.median(starts)))
    low, high = limits[0] if below else None, limits[1] if above else None
    # What lies beyond was never seen, if the observation does not allow for it.
    least, greatest = (
        _rounded(bound if np.isfinite(bound) else seen) for bound, seen in zip(bounds, reached, strict=True)
    )
    rooms = ([] if low is None else [mu - low, low - least]) + ([] if high is None else [high - mu, greatest - high])
    if min(rooms) <= 0.0:  # It moves by less than its rounding.
        return None
    w = _rounded(COST_AT_LIMIT / min(rooms[::2]) ** 2)
    seen = f"begins in [{start[0]:.4g}, {start[1]:.4g}], random actions reach [{reached[0]:.4g}, {reached[1]:.4g}]"
    return Variable("", path, mu, w, min(least, mu), max(greatest, mu)), (low, high), seen


def _far_out(plays: Sequence[Play], path: str) -> float:
    """
    :param plays: episodes
    :param path: of a number
    :return: mean rank of its distance from where episodes begin, at the moments at which they terminate: 1 if it is
        then the farthest out
    """
    values = series(plays, path)
    centre = np.median([one.numbers[0][path] for one in plays])
    distance = np.sort(np.abs(values - centre))
    ends = [abs(one.numbers[-1].get(path, centre) - centre) for one in plays if one.terminated]
    return float(np.mean(np.searchsorted(distance, ends) / len(distance))) if ends else 0.0


def _battery(action_space: spaces.Space[Any], append: bool) -> Proposal:
    """
    :param action_space: of the environment
    :param append: see :class:`Proposal`
    :return: a battery that every action but the first, or every unit of a Box action, drains
    """
    source: dict[str, Any] = {"initial": 1.0, "drain": 0.001}
    if isinstance(action_space, spaces.Discrete):
        source["action_cost"] = [0.0] + [0.01] * (int(action_space.n) - 1)
    elif isinstance(action_space, spaces.Box):
        source["action_cost"] = 0.01
    w = _rounded(COST_AT_LIMIT / 0.8**2)
    return Proposal(
        [Variable("battery", source, 1.0, w)],
        [("battery >= 0.2", "nothing that the environment shows could be limited, so this is simulated beside it")],
        append=append,
    )


def _name(path: str, whole: bool = False) -> str:
    """
    :param path: such as ``"info.battery.charge"`` or ``"obs[2]"``
    :param whole: use all of it
    :return: a name that a constraint can use: ``charge``, ``obs_2``
    """
    root, parts = parse_path(path)
    words = [root, *(str(part) for part in parts)]
    last = max(index for index, word in enumerate(words) if not word.isdigit())
    name = re.sub(r"\W+", "_", "_".join(words if whole else words[last:])).strip("_")
    return f"x_{name}" if not name.isidentifier() or name in RESERVED else name


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
