"""Whether a configuration suits its environment: the constraints, the setpoint, the beginning, the reward."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from persist_sb3.diagnosis.finding import Finding
from persist_sb3.diagnosis.probe import Chooser, Floats, Play, constant_actions, play, series
from persist_sb3.homeostat import PaidToDieWarning
from persist_sb3.metrics import survival_curve
from persist_sb3.viability import ViabilitySet

#: Below this scaled margin a state is near the boundary.
NEAR = 0.1
#: Share of random episodes that may survive before a survival rate says nothing.
TOO_EASY = 0.9
#: Median life of a random policy that leaves nothing to learn from.
TOO_SHORT = 3
#: Correlation from which on a number tells the value of another.
ALIKE = 0.999
#: Seeds that are replayed with different actions.
REPLAYS = 3


def check_constraints(plays: Sequence[Play], viability: ViabilitySet) -> list[Finding]:
    """
    :param plays: episodes under random actions
    :param viability: the constraints
    :return: of each constraint, whether random actions violate it or come near
    """
    margins = viability.margins(np.concatenate([_internal(one)[1:] for one in plays]))
    findings = []
    for column, name in enumerate(viability.names):
        margin = margins[:, column]
        violated, least = float((margin < 0.0).mean()), float(np.nanmin(margin))
        if violated > 0.0:
            text = f"{name}: violated at {violated:.1%} of steps"
            findings.append(Finding("ok", "constraints", text))
        elif least < NEAR:
            text = f"{name}: never violated, but near (least margin {least:.2f}, where 1 is the setpoint's)"
            findings.append(Finding("ok", "constraints", text))
        else:
            findings.append(
                Finding(
                    "note",
                    "constraints",
                    f"{name}: never violated and never near (least margin {least:.2f}, where 1 is the setpoint's)",
                    "check its limits and its unit against the range seen; what is never near cannot be learned",
                )
            )
    return findings


def check_beginning(plays: Sequence[Play], viability: ViabilitySet) -> list[Finding]:
    """
    :param plays: episodes
    :param viability: the constraints
    :return: whether episodes begin inside
    """
    starts = np.array([_internal(one)[0] for one in plays])
    margins = viability.margins(starts)
    outside = ~viability.contains(starts)
    if outside.any():
        names = [viability.names[j] for j in np.flatnonzero((margins < 0.0).any(axis=0))]
        return [
            Finding(
                "problem",
                "beginning",
                f"{outside.sum()} of {len(plays)} episodes begin in violation of {', '.join(names)}",
                "widen the constraint, or let the environment begin inside: nothing can be learned from such a death",
            )
        ]
    least = float(margins.min())
    if least < NEAR:
        remedy = "fine if it is meant to be hard; else widen the constraint or begin further inside"
        return [Finding("note", "beginning", f"some episodes begin near the boundary (margin {least:.2f})", remedy)]
    return [Finding("ok", "beginning", f"inside, with a margin of {least:.2f} or more")]


def check_setpoint(plays: Sequence[Play], viability: ViabilitySet) -> list[Finding]:
    """
    :param plays: episodes
    :param viability: the constraints; that the setpoint satisfies them is checked where they are made
    :return: whether the setpoint of each variable lies among the values seen
    """
    if viability.mu is None:
        return []
    x = np.concatenate([_internal(one) for one in plays])
    findings = []
    for column, name in enumerate(viability.dims):
        low, high, mu = float(x[:, column].min()), float(x[:, column].max()), float(viability.mu[column])
        if low == high:
            remedy = "check its source: a variable that never changes can neither be kept nor lost"
            findings.append(Finding("problem", "setpoint", f"{name} was always {low:g}", remedy))
        elif not low <= mu <= high:
            findings.append(
                Finding(
                    "note",
                    "setpoint",
                    f"{name} = {mu:g} was never reached: {low:.4g} to {high:.4g} was seen",
                    "check its unit; a setpoint that cannot be reached costs the agent reward at every step",
                )
            )
    return findings or [Finding("ok", "setpoint", "inside the constraints, and among the values seen")]


def check_visible(plays: Sequence[Play], viability: ViabilitySet, hidden: Sequence[str] = ()) -> list[Finding]:
    """
    :param plays: episodes
    :param viability: says which variables there are
    :param hidden: those that the agent is not meant to see
    :return: variables of which no number of the observation is a copy, or a linear function: the agent cannot know them
    """
    shown = [series(plays, path) for path in plays[0].numbers[0] if path.startswith("obs")]
    x = np.concatenate([_internal(one) for one in plays])
    unseen = [
        name
        for name, values in zip(viability.dims, x.T, strict=True)
        if name not in hidden and not any(_same(values, other) for other in shown)
    ]
    if not unseen:
        return []
    return [
        Finding(
            "note",
            "visibility",
            f"{', '.join(unseen)}: no number in the observation tells the agent the value",
            "internal_state.append: true shows it; fine if it can be told from something else, an image for example",
        )
    ]


def _same(values: Floats, other: Floats) -> bool:
    """
    :param values: of a variable, ``(n,)``
    :param other: of a number in the observation, at the same moments
    :return: whether the one is a linear function of the other
    """
    if len(values) != len(other) or not np.isfinite(other).all() or other.min() == other.max():
        return False
    return bool(values.min() == values.max() or abs(np.corrcoef(values, other)[0, 1]) > ALIKE)


def check_lives(plays: Sequence[Play], viability: ViabilitySet, limit: int | None) -> list[Finding]:
    """
    :param plays: episodes under random actions
    :param viability: the constraints
    :param limit: steps after which episodes are cut off
    :return: whether random actions live so long, or so short, that nothing can be learned
    """
    curve = survival_curve([one.record(viability) for one in plays])
    survived = float(curve.at([curve.last])[0])
    if survived >= TOO_EASY:
        return [
            Finding(
                "note",
                "difficulty",
                f"random actions survive in {survived:.0%} of episodes"
                + ("" if limit is None else f" of {limit} steps"),
                "lengthen the horizon or narrow the constraints, unless the task itself leads to the boundary",
            )
        ]
    if curve.median <= TOO_SHORT:
        return [
            Finding(
                "problem",
                "difficulty",
                f"random actions live for {curve.median:.0f} steps (median)",
                "begin further inside, or widen the constraints and tighten them later: so short a life teaches little",
            )
        ]
    return [Finding("ok", "difficulty", f"random actions survive in {survived:.0%} of episodes")]


def check_influence(
    env: gym.Env[Any, Any],
    viability: ViabilitySet,
    seed: int,
    most: int,
    progress: Callable[[int], object] | None = None,
) -> list[Finding]:
    """
    Replays a few beginnings with different constant actions. That shows whether actions move the variables; it cannot
    show that death is avoidable, only that it is not if nothing that is done changes when it comes.

    :param env: as :func:`~persist_sb3.diagnosis.probe.play` takes it
    :param viability: the constraints
    :param seed: of the first beginning
    :param most: steps after which watching stops
    :param progress: called with the number of beginnings that are done
    :return: what actions change
    """
    actions = constant_actions(env.action_space)
    if len(actions) < 2:
        return []
    moved = np.zeros(len(viability.dims), dtype=bool)
    lives: dict[str, list[int]] = {name: [] for name in actions}
    survived: Counter[str] = Counter()
    fated = 0
    for number in range(REPLAYS):
        replays = {name: play(env, _always(action), seed + number, most) for name, action in actions.items()}
        first, *others = replays.values()
        for other in others:
            length = min(first.length, other.length) + 1
            moved |= (_internal(first)[:length] != _internal(other)[:length]).any(axis=0)
        ends = [one.violated_at(viability) for one in replays.values()]
        fated += len(set(ends)) == 1 and ends[0] is not None
        for (name, one), at in zip(replays.items(), ends, strict=True):
            lives[name].append(one.length if at is None else at)
            survived[name] += at is None
        if progress is not None:
            progress(number + 1)
    findings = []
    still = [name for name, moves in zip(viability.dims, moved, strict=True) if not moves]
    if still:
        findings.append(
            Finding(
                "problem",
                "influence of actions",
                f"no action changes {', '.join(still)}: the same values whatever is done",
                "check the source, or give a simulated variable an action_cost or a reward_gain",
            )
        )
    if fated == REPLAYS:
        findings.append(
            Finding(
                "problem",
                "avoidability",
                f"death comes at the same step whatever is done (in {REPLAYS} of {REPLAYS} beginnings)",
                "let something that the agent can do restore the variable, or remove the constraint",
            )
        )
    if findings:
        return findings
    best, steps = max(((name, float(np.mean(life))) for name, life in lives.items()), key=lambda pair: pair[1])
    text = (
        f"of constant actions, '{best}' lives longest: {steps:.0f} steps, without a violation in {survived[best]} of "
        f"{REPLAYS} episodes"
    )
    return [Finding("ok", "influence of actions", text)]


def _always(action: Any) -> Chooser:
    return lambda _: action


def check_agent(make: Callable[[], gym.Env[Any, Any]], steps: int = 50) -> list[Finding]:
    """
    Build the environment with all its layers, and step it.

    :param make: does so
    :param steps: how many
    :return: the reward trap, and what does not work
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env = make()
            env.reset(seed=0)
            env.action_space.seed(0)
            for _ in range(steps):
                *_, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    env.reset()
            env.close()
        except (RuntimeError, TypeError, ValueError) as error:
            remedy = "change the configuration as it says"
            return [Finding("problem", "layers", f"{type(error).__name__}: {error}", remedy)]
    traps = [str(warning.message) for warning in caught if issubclass(warning.category, PaidToDieWarning)]
    if traps:
        text, _, remedy = traps[0].rpartition(". ")
        return [Finding("problem", "reward", text, remedy)]
    return [
        Finding("ok", "layers", "all layers work on this environment"),
        Finding("ok", "reward", "dying never pays"),
    ]


def _internal(one: Play) -> Any:
    assert one.internal is not None
    return one.internal
