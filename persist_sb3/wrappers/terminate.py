"""Ends an episode where a constraint is violated, in an environment that would go on."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor


class TerminateOnViolation(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Terminates an episode at the first step whose ``info["cost"]`` is positive: what an environment needs whose internal
    variables are simulated beside it, since it does not know that they ran out.

    It lies between :class:`~persist_sb3.wrappers.InternalState` and ``Monitor``. Outside of ``Monitor`` it would end
    episodes that ``Monitor`` never sees end: their returns would be missing from every log, and ``evaluate_policy``
    would wait for them for ever. That is why it exists for ``gymnasium.Env`` alone. ``make_vec_env`` and the zoo's
    ``env_wrapper`` and ``vec_env_wrapper`` wrap outside of ``Monitor``, and ``monitor_kwargs`` can only configure it:
    what they are to find inside is registered with the environment, under an id of its own (see ``docs/layers.md``).

    :param env: an environment that reports ``info["cost"]`` at every step
    :raises RuntimeError: if nothing below declares constraints, or a ``Monitor`` lies below
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if not env.has_wrapper_attr("viability"):
            raise RuntimeError(
                "TerminateOnViolation needs constraints, and nothing below it has any: wrap the environment in "
                "InternalState(dims=..., constraints=...) first"
            )
        below: gym.Env[Any, Any] = env
        while isinstance(below, gym.Wrapper):
            if isinstance(below, Monitor):
                raise RuntimeError(
                    "TerminateOnViolation lies outside of Monitor, which would not see the episodes end that it ends: "
                    "register an id whose entry point wraps the environment in it, and make that id instead"
                )
            below = below.env

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        :param action: of the action space
        :return: observation, reward, terminated, truncated, info
        :raises RuntimeError: if the environment does not report ``info["cost"]``
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise RuntimeError(
                f"info['cost'] is missing; the info has {sorted(map(str, info))}. Wrap the environment in "
                "InternalState, which reports it at every step"
            )
        return observation, reward, bool(terminated or info["cost"] > 0.0), truncated, info
