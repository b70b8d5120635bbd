"""What can be said about an environment before anyone says what its internal variables are."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from persist_sb3.diagnosis.finding import Finding
from persist_sb3.diagnosis.probe import Play
from persist_sb3.viability import ViabilitySet

CONTINUOUS_ONLY = ("crossq", "ddpg", "sac", "td3", "tqc")
DISCRETE_ONLY = ("dqn", "qrdqn")
#: Side of the smallest image that SB3's NatureCNN can look at.
SMALLEST = 36
#: Episodes that must share the greatest length to look like a time limit.
ALIKE = 3


def check_interface(env: gym.Env[Any, Any]) -> list[Finding]:
    """
    Run gymnasium's own checker.

    :param env: a fresh environment, which is stepped
    :return: what it has to say
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
        except Exception as error:  # The environment's code is anyone's, and the checker asserts.
            return [
                Finding(
                    "problem",
                    "gymnasium's checker",
                    f"{type(error).__name__}: {_plain(error)}",
                    "correct the environment: nothing that is built on it can be trusted before",
                )
            ]
    texts = list(dict.fromkeys(_plain(warning.message) for warning in caught))
    if not texts:
        return [Finding("ok", "gymnasium's checker", "has nothing to say")]
    return [Finding("note", "gymnasium's checker", text, _advice(text)) for text in texts]


def _advice(text: str) -> str:
    """
    :param text: of a warning of the checker
    :return: what to do about it
    """
    if "infinity. This is probably too" in text:
        return "fine here: observations need no limits"
    return "see gymnasium's page on environments"


def _plain(message: object) -> str:
    """
    :param message: of the checker, which colours it
    :return: its text on one line
    """
    return re.sub(r"\x1b\[\d+m|WARN:|\s+", " ", str(message)).strip()


def check_spaces(env: gym.Env[Any, Any], algo: str | None, append: bool = False) -> list[Finding]:
    """
    :param env: the environment
    :param algo: rl-zoo3's name of the algorithm, if one is chosen
    :param append: ``InternalState`` appends to the observation, and flattens a Tuple for that
    :return: whether SB3 can learn from these observations and take these actions
    """
    findings = []
    observation, action = env.observation_space, env.action_space
    nested = isinstance(observation, spaces.Dict) and any(
        isinstance(part, spaces.Dict | spaces.Tuple) for part in observation.spaces.values()
    )
    if (isinstance(observation, spaces.Tuple) and not append) or nested:
        findings.append(
            Finding(
                "problem",
                "spaces",
                f"SB3 cannot learn from {'a nested Dict' if nested else 'a Tuple'}: {observation}",
                "wrap it in gymnasium.wrappers.FlattenObservation"
                + ("" if nested else ", or set internal_state.append to true, which flattens it"),
            )
        )
    small = [
        name for name, part in _parts(observation) if is_image(part) and min(sorted(part.shape or ())[1:]) < SMALLEST
    ]
    if small:
        findings.append(
            Finding(
                "problem",
                "spaces",
                f"SB3 looks at images with a network that needs {SMALLEST} x {SMALLEST} pixels, and there are fewer in "
                f"{', '.join(small)}",
                "enlarge the image (gymnasium.wrappers.ResizeObservation), or show it as real numbers in [0, 1], which "
                "are flattened",
            )
        )
    if algo in CONTINUOUS_ONLY and not isinstance(action, spaces.Box):
        able = "PPO, DQN or QRDQN" if isinstance(action, spaces.Discrete) else "PPO, A2C or TRPO"
        remedy = f"choose {able}, or actions that are real numbers for {algo}"
        findings.append(Finding("problem", "spaces", f"{algo} needs Box actions, and these are {action}", remedy))
    if algo in DISCRETE_ONLY and not isinstance(action, spaces.Discrete):
        remedy = f"choose PPO, {'SAC, TD3 or TQC' if isinstance(action, spaces.Box) else 'A2C or TRPO'}"
        findings.append(Finding("problem", "spaces", f"{algo} needs Discrete actions, and these are {action}", remedy))
    if isinstance(action, spaces.Box) and not np.isfinite([action.low, action.high]).all():
        remedy = "give the action space finite limits: SB3 scales actions to them"
        findings.append(Finding("problem", "spaces", f"actions have no limits: {action}", remedy))
    return findings or [Finding("ok", "spaces", f"observations {_short(observation)}, actions {_short(action)}")]


def _parts(space: spaces.Space[Any]) -> list[tuple[str, spaces.Space[Any]]]:
    """
    :param space: of observations
    :return: the parts of a Dict, or the space itself, by name
    """
    if isinstance(space, spaces.Dict):
        return [(f"obs.{key}", part) for key, part in space.spaces.items()]
    return [("obs", space)]


def is_image(space: spaces.Space[Any]) -> bool:
    """
    :param space: of observations
    :return: whether SB3 would look at them with a convolutional network
    """
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _short(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return "Dict(" + ", ".join(f"{key}: {_short(part)}" for key, part in space.spaces.items()) + ")"
    if isinstance(space, spaces.Box):
        return f"Box{space.shape}"
    return str(space)


def check_finite(plays: Sequence[Play], internal: Sequence[str] = ()) -> list[Finding]:
    """
    :param plays: episodes
    :param internal: names of the internal variables
    :return: where NaN or infinity appeared
    """
    bad = {path for one in plays for moment in one.numbers for path, value in moment.items() if not np.isfinite(value)}
    if any(not np.isfinite(one.reward).all() for one in plays):
        bad.add("the reward")
    for column, name in enumerate(internal):
        if any(one.internal is not None and not np.isfinite(one.internal[:, column]).all() for one in plays):
            bad.add(f"internal variable {name}")
    if not bad:
        return [Finding("ok", "finite numbers", "no NaN or infinity was seen")]
    remedy = "correct the environment; InternalState stops a training at the first one"
    return [Finding("problem", "finite numbers", f"NaN or infinity in {', '.join(sorted(bad))}", remedy)]


def check_ends(plays: Sequence[Play], limit: int | None, viability: ViabilitySet | None, most: int) -> list[Finding]:
    """
    :param plays: episodes under random actions
    :param limit: steps after which the environment says that it cuts episodes off
    :param viability: the constraints, if they are known
    :param most: steps after which watching stopped
    :return: whether episodes end, and by what
    """
    findings: list[Finding] = []
    endless = [one for one in plays if not one.ended]
    if endless and (limit is None or limit <= most):
        findings.append(
            Finding(
                "problem",
                "horizon",
                f"{len(endless)} of {len(plays)} episodes had no end within {most} steps",
                "give episodes a time limit (env.horizon in the configuration, or max_episode_steps in gymnasium): "
                "evaluations wait for an end",
            )
        )
    late = _looks_like_a_limit(plays, viability)
    if late is not None:
        findings.append(
            Finding(
                "problem",
                "time limit",
                f"episodes without a violation end at step {late} as terminated: a time limit that is reported as a "
                "death"
                if viability is not None
                else f"episodes end at step {late} as terminated, like a time limit",
                "return truncated=True there instead: a learner takes what is terminated to be worth nothing further",
            )
        )
    if viability is not None:
        findings += _compare_ends(plays, viability, late)
    if not findings:
        told = f"cut off after {limit} steps" if limit else "no time limit"
        terminated = sum(one.terminated for one in plays)
        findings.append(Finding("ok", "ends", f"{told}; {terminated} of {len(plays)} episodes terminated"))
    return findings


def _looks_like_a_limit(plays: Sequence[Play], viability: ViabilitySet | None) -> int | None:
    """
    :param plays: episodes
    :param viability: the constraints
    :return: the length that several episodes share, none exceeds, and no violation explains
    """
    unexplained = [one for one in plays if one.terminated and (viability is None or one.violated_at(viability) is None)]
    longest = max(one.length for one in plays)
    alike = [one for one in unexplained if one.length == longest]
    return longest if len(alike) >= ALIKE and longest > 1 else None


def _compare_ends(plays: Sequence[Play], viability: ViabilitySet, late: int | None) -> list[Finding]:
    findings = []
    violated = [one.violated_at(viability) for one in plays]
    unexplained = [
        one for one, at in zip(plays, violated, strict=True) if one.terminated and at is None and one.length != late
    ]
    going_on = [one for one, at in zip(plays, violated, strict=True) if at is not None and at < one.length]
    if unexplained:
        findings.append(
            Finding(
                "note",
                "ends",
                f"{len(unexplained)} of {len(plays)} episodes terminated without a violation",
                "if that is a success, fine; if it is a death, write the constraint that names it",
            )
        )
    if going_on:
        findings.append(
            Finding(
                "note",
                "ends",
                f"{len(going_on)} of {len(plays)} episodes went on after a violation",
                "fine if the limits are meant to lie inside those of the environment; to end episodes there, register "
                "an id with TerminateOnViolation (see the page on layers)",
            )
        )
    if not findings and late is None:
        deaths = sum(at is not None for at in violated)
        text = f"{deaths} of {len(plays)} episodes end in a violation, and nothing else terminates one"
        findings.append(Finding("ok", "ends", text))
    return findings
