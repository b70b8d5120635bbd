"""A second copy of the environments that an agent trains in."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec, load_env_creator
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from persist_sb3.wrappers.adapters import VecLayerWrapper
from persist_sb3.wrappers.intervening import InterveningOwner
from persist_sb3.wrappers.trials import VecTrials


def remake(
    venv: VecEnv,
    *,
    innermost: type[gym.Wrapper[Any, Any, Any, Any]] | None = None,
    render_mode: str | None = None,
    intervening: bool = True,
) -> VecEnv | None:
    """
    Make one more of these environments, with random streams of its own, in the same wrappers: for what must be tried
    without disturbing the training. Monitors, and a ``VecNormalize`` on the outside, are left out.

    :param venv: vectorised environments
    :param innermost: a wrapper to put beneath the others
    :param render_mode: of the new environment. Default: none, since it is not the one that is watched
    :param intervening: whether layers that replace actions come along
    :return: one environment; None if one of them was not made by ``gymnasium.make``, or is in a wrapper of which
        nobody knows the parameters
    """
    return _remake(venv.venv if isinstance(venv, VecNormalize) else venv, innermost, render_mode, intervening)


def _remake(
    venv: VecEnv,
    innermost: type[gym.Wrapper[Any, Any, Any, Any]] | None,
    render_mode: str | None,
    intervening: bool,
) -> VecEnv | None:
    if isinstance(venv, VecMonitor):
        return _remake(venv.venv, innermost, render_mode, intervening)
    if isinstance(venv, VecLayerWrapper | VecTrials):
        inner = _remake(venv.venv, innermost, render_mode, intervening)
        left_out = isinstance(venv, InterveningOwner) and not intervening
        return inner if inner is None or left_out else type(venv)(inner, **venv.kwargs)
    if isinstance(venv, VecEnvWrapper) or not venv.has_attr("spec"):
        return None
    spec = venv.get_attr("spec", indices=0)[0]
    if spec is None:
        return None
    wrappers = tuple(
        wrapper
        for wrapper in spec.additional_wrappers
        if not _is_monitor(wrapper) and (intervening or not _intervenes(wrapper))
    )
    if any(wrapper.kwargs is None for wrapper in wrappers):
        return None
    if innermost is not None:
        entry_point = f"{innermost.__module__}:{innermost.__qualname__}"
        wrappers = (WrapperSpec(innermost.__name__, entry_point, {}), *wrappers)
    kwargs = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    copy = replace(spec, additional_wrappers=wrappers, kwargs=kwargs)
    return DummyVecEnv([lambda: gym.make(copy)])


def _is_monitor(wrapper: WrapperSpec) -> bool:
    return wrapper.entry_point == f"{Monitor.__module__}:{Monitor.__qualname__}"


def _intervenes(wrapper: WrapperSpec) -> bool:
    kind = load_env_creator(wrapper.entry_point)
    return isinstance(kind, type) and issubclass(kind, InterveningOwner)
