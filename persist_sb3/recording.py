"""Let an agent play whole episodes, and keep every transition of them as demonstrations."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from persist_sb3.batch import take
from persist_sb3.buffers.demonstrations import Demonstrations
from persist_sb3.buffers.transitions import Transitions, TransitionStore, as_batch, concatenate
from persist_sb3.evaluation import declared_viability


def record(
    model: PolicyPredictor,
    venv: VecEnv,
    episodes: int,
    *,
    deterministic: bool = True,
    seed: int | None = None,
    drop_unsafe: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Demonstrations:
    """
    Run whole episodes, all environments in one batch. How many each environment runs is fixed beforehand, as evenly as
    possible. What is kept is what a callback would read in training: observations before ``VecNormalize``, executed
    actions, rewards of the outermost layer.

    :param model: an SB3 model, or anything with its ``predict``, such as GridLife's
        :class:`~persist_sb3.envs.oracle.OraclePolicy`
    :param venv: declares ``viability`` (GridLife and ``InternalState`` do) and publishes ``info["internal"]``
    :param episodes: how many, in all
    :param deterministic: take the policy's best action instead of a sample
    :param seed: of the environments (the i-th gets ``seed + i``) and of the policy's samples. Default: left as they are
    :param drop_unsafe: leave episodes out that violate a constraint, instead of refusing the set
    :param progress: called at each step with the number of episodes that are done
    :return: the episodes, those of environment 0 first
    :raises ValueError: if ``episodes`` is not positive
    :raises RuntimeError: if the environments do not say what their internal variables are, or the agent does not keep
        them where they must be
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    viability = declared_viability(venv)
    num_envs = venv.num_envs
    quota = (episodes + np.arange(num_envs)) // num_envs
    counts = np.zeros(num_envs, dtype=np.intp)
    steps: list[Transitions] = []
    wanted: list[np.ndarray] = []
    for step in play(model, venv, deterministic=deterministic, seed=seed):
        steps.append(step)
        wanted.append(counts < quota)
        counts += step.done & wanted[-1]
        if progress is not None:
            progress(int(counts.sum()))
        if (counts == quota).all():
            break
    # Row t * n + i is environment i at step t: taken environment by environment.
    slots, times = np.nonzero(np.array(wanted).T)
    rows = take(as_batch(concatenate(steps)), times * num_envs + slots)
    return Demonstrations(Transitions(**rows), viability, drop_unsafe=drop_unsafe)


def play(
    model: PolicyPredictor, venv: VecEnv, *, deterministic: bool = True, seed: int | None = None
) -> Iterator[Transitions]:
    """
    Run a policy for ever. A recurrent one keeps its states, and one that takes action masks gets them.

    :param model: an SB3 model, or anything with its ``predict``
    :param venv: publishes ``info["internal"]``
    :param deterministic: take the policy's best action instead of a sample
    :param seed: of the environments and of the policy's samples. Default: left as they are
    :return: what happens at each step, ``(n, ...)``
    """
    masked = "action_masks" in inspect.signature(model.predict).parameters and is_masking_supported(venv)
    if seed is not None:
        set_random_seed(seed)
        venv.seed(seed)
    player = _Player(venv)
    store = TransitionStore()
    store.attach(player)  # type: ignore[arg-type]
    state, starts = None, np.ones(venv.num_envs, dtype=bool)
    while True:
        arguments: dict[str, Any] = {"action_masks": get_action_masks(venv)} if masked else {}
        action, state = model.predict(
            player._last_obs,  # type: ignore[arg-type]
            state=state,
            episode_start=starts,
            deterministic=deterministic,
            **arguments,
        )
        observation, reward, starts, infos = venv.step(action)
        player._last_obs = observation
        player.num_timesteps += venv.num_envs
        shown = {"new_obs": observation, "rewards": reward, "dones": starts, "infos": infos}
        yield store.read({"self": player, "actions": action, **shown})


class _Player:
    """
    What a :class:`~persist_sb3.buffers.TransitionStore` asks of the algorithm whose transitions it reads.

    :param env: is reset
    """

    def __init__(self, env: VecEnv) -> None:
        self._env = env
        self._last_obs = env.reset()
        self.num_timesteps = 0

    def get_env(self) -> VecEnv:
        """
        :return: the environments
        """
        return self._env
