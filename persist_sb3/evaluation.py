"""Run an agent for a fixed number of whole episodes, and keep what happened step by step."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from persist_sb3.infos import ListInfos, episode_ends, told_bonuses
from persist_sb3.metrics import EpisodeRecord, EpisodeTracker
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers.adapters import lookup

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Episode:
    """
    One episode of ``T`` steps.

    :param record: its figures; ``record.env`` is the environment it ran in
    :param internal: the internal variables after each step, ``(T, d)``
    :param reward: what the outermost layer gave, before ``VecNormalize``, ``(T,)``
    :param terms: what that consists of, ``(T,)`` each; none if no layer reports them
    """

    record: EpisodeRecord
    internal: Floats
    reward: Floats
    terms: dict[str, Floats]


def evaluate(
    model: PolicyPredictor,
    venv: VecEnv,
    episodes: int,
    *,
    deterministic: bool = True,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
    near: float = 0.1,
    core: float = 0.25,
    recovery_horizon: int = 20,
) -> list[Episode]:
    """
    Run whole episodes, all environments in one batch. How many each environment runs is fixed beforehand (as evenly as
    possible), since taking those that end first would favour the short ones. Recurrent policies keep their states, and
    a policy that takes action masks gets them.

    :param model: an SB3 model, or anything with its ``predict``
    :param venv: declares ``viability`` (GridLife and ``InternalState`` do) and publishes ``info["internal"]``
    :param episodes: how many, in all
    :param deterministic: take the policy's best action instead of a sample
    :param seed: of the environments (the i-th gets ``seed + i``) and of the policy's samples. Default: left as they are
    :param progress: called at each step with the number of episodes that are done
    :param near: a step is near the boundary if its smallest scaled margin lies in ``[0, near)``
    :param core: a step is safe again from this margin on
    :param recovery_horizon: steps within which a near-boundary step has to become safe to count as recovered
    :return: the episodes, those of environment 0 first, in the order in which each ran them
    :raises ValueError: if ``episodes`` is not positive
    :raises RuntimeError: if the environments do not say what their internal variables are
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    num_envs = venv.num_envs
    viability = declared_viability(venv)
    masked = "action_masks" in inspect.signature(model.predict).parameters and is_masking_supported(venv)
    normalizer = unwrap_vec_normalize(venv)
    tracker: EpisodeTracker | None = None
    everyone = np.arange(num_envs)
    quota = (episodes + everyone) // num_envs
    finished: list[list[Episode]] = [[] for _ in range(num_envs)]
    counts = np.zeros(num_envs, dtype=np.intp)
    history: list[Floats] = []
    began = np.zeros(num_envs, dtype=np.intp)

    if seed is not None:
        set_random_seed(seed)
        venv.seed(seed)
    observation = venv.reset()
    state = None
    starts = np.ones(num_envs, dtype=bool)
    while (counts < quota).any():
        arguments: dict[str, Any] = {"action_masks": get_action_masks(venv)} if masked else {}
        action, state = model.predict(
            observation,  # type: ignore[arg-type]
            state=state,
            episode_start=starts,
            deterministic=deterministic,
            **arguments,
        )
        observation, reward, starts, infos = venv.step(action)
        if normalizer is not None:
            reward = normalizer.get_original_reward()
        reported = ListInfos(infos)
        internal = reported.column(("internal",), everyone)
        bonuses = told_bonuses(infos)
        if tracker is None:
            names = tuple(infos[0].get("reward_terms", ()))
            tracker = EpisodeTracker(
                viability,
                num_envs,
                names,
                bonuses=tuple(bonuses),
                near=near,
                core=core,
                horizon=recovery_horizon,
                shielded="intervened" in infos[0],
            )
        terms = {name: reported.column(("reward_terms", name), everyone) for name in tracker.terms}
        history.append(np.column_stack([internal, reward, *terms.values()]))
        # A recurrent policy keeps its memory from one life of a trial to the next.
        ended = episode_ends(starts, infos)
        truncated = ended & np.array([info.get("TimeLimit.truncated", False) for info in infos])
        intervened = reported.column(("intervened",), everyone) > 0.0 if tracker.shielded else None
        for record in tracker.step(internal, reward, terms, ended, truncated, intervened, bonuses):
            slot = record.env
            if counts[slot] < quota[slot]:
                finished[slot].append(_episode(record, history[began[slot] :], viability, tracker.terms))
                counts[slot] += 1
            began[slot] = len(history)
        if progress is not None:
            progress(int(counts.sum()))
    return [episode for slot in finished for episode in slot]


def declared_viability(venv: VecEnv) -> ViabilitySet:
    """
    :param venv: environments
    :return: the constraints that they, or a layer around them, declare
    :raises RuntimeError: if there are none
    """
    try:
        viability: ViabilitySet = lookup(venv, "viability")
    except AttributeError as error:
        raise RuntimeError(
            "nothing says what these environments' internal variables are: wrap them in "
            "persist_sb3.wrappers.VecInternalState(dims=..., sources=..., constraints=...)"
        ) from error
    return viability


def _episode(record: EpisodeRecord, history: list[Floats], viability: ViabilitySet, terms: tuple[str, ...]) -> Episode:
    rows = np.array([step[record.env] for step in history])
    d = len(viability.dims)
    return Episode(record, rows[:, :d], rows[:, d], dict(zip(terms, rows[:, d + 1 :].T, strict=True)))
