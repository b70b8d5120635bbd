"""Demonstrations from and to datasets of Minari (Younis et al., 2024), which the extra ``minari`` installs."""

import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import tree_map
from persist_sb3.buffers.demonstrations import DemonstrationError, Demonstrations
from persist_sb3.buffers.transitions import Transitions, concatenate
from persist_sb3.infos import MissingInfoError, VectorInfos
from persist_sb3.internal import InternalSource, SourceError
from persist_sb3.viability import ViabilitySet

#: Infos of an episode that :func:`write_minari` stores, beside ``internal`` and ``reward_terms``.
COLUMNS = ("executed_action", "cost")


def read_minari(
    dataset: Any,
    viability: ViabilitySet,
    *,
    sources: Mapping[str, str] | None = None,
    drop_unsafe: bool = False,
) -> Demonstrations:
    """
    :param dataset: a ``minari.MinariDataset``, or the id of one that has been downloaded or written
    :param viability: the constraints that it is held against
    :param sources: where each internal variable is, as ``InternalState`` takes it: ``{"battery": "info.battery"}`` (of
        datasets that were collected with ``record_infos=True``) or ``{"x": "obs[0]"}``. Default: ``info["internal"]``
    :param drop_unsafe: leave episodes out that violate a constraint, instead of refusing the set
    :return: its episodes; without ``info["executed_action"]`` the action is what was executed
    :raises RuntimeError: if Minari is not installed, an internal variable is not where it should be, the dataset has no
        episodes, or it violates the constraints
    :raises TypeError: if a source is a simulated variable
    """
    if isinstance(dataset, str):
        dataset = _minari().load_dataset(dataset)
    for name, path in (sources or {}).items():
        if not isinstance(path, str):
            raise TypeError(
                f"'{name}' cannot be simulated beside a dataset: let InternalState simulate it in the environment, and "
                "record the demonstrations there"
            )
    source = InternalSource(viability.dims, sources)
    try:
        parts = [_read(episode, source, dataset.observation_space, dataset.action_space) for episode in dataset]
    except (MissingInfoError, SourceError) as error:
        raise DemonstrationError(
            f"the dataset {dataset.id} does not say what the internal variables {list(viability.dims)} are: {error}"
        ) from error
    if not parts:
        raise DemonstrationError(f"the dataset {dataset.id} has no episodes")
    return Demonstrations(concatenate(parts), viability, drop_unsafe=drop_unsafe)


def _read(
    episode: Any, source: InternalSource, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Transitions:
    """
    :param episode: of ``T`` steps, a ``minari.EpisodeData``
    :param source: of the internal variables
    :param observation_space: of the dataset
    :param action_space: of the dataset
    :return: its transitions, ``(T, ...)``
    """
    length = len(episode)
    infos = episode.infos or {}
    # Each of an episode's states is read as that of an environment of its own.
    source.attach(length + 1, observation_space, action_space)
    observation = episode.observations
    x = source.begin(np.arange(length + 1), observation, VectorInfos(infos, length + 1))
    terminated, truncated = np.array(episode.terminations, dtype=bool), np.array(episode.truncations, dtype=bool)
    # An episode that ends without a reason was cut off.
    truncated[-1] = True
    action = np.asarray(episode.actions)
    return Transitions(
        observation=tree_map(lambda leaf: np.asarray(leaf)[:-1], observation),
        next_observation=tree_map(lambda leaf: np.asarray(leaf)[1:], observation),
        action=action,
        executed_action=np.asarray(infos["executed_action"])[1:] if "executed_action" in infos else action,
        reward=np.asarray(episode.rewards, dtype=np.float64),
        terms={name: np.asarray(term[1:], dtype=np.float64) for name, term in infos.get("reward_terms", {}).items()},
        internal=x[:-1],
        next_internal=x[1:],
        cost=np.asarray(infos["cost"][1:], dtype=np.float64) if "cost" in infos else np.full(length, np.nan),
        terminated=terminated,
        truncated=truncated & ~terminated,
        done=terminated | truncated,
    )


def write_minari(
    demonstrations: Demonstrations,
    dataset_id: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    **metadata: Any,
) -> Any:
    """
    Write a dataset where Minari keeps its own (``~/.minari/datasets``, or ``$MINARI_DATASETS_PATH``). Internal
    variables, executed actions, costs and reward terms are stored as infos, from where :func:`read_minari` takes them.

    :param demonstrations: what to write
    :param dataset_id: its name, such as ``gridlife/oracle-v0``
    :param observation_space: of the environment that they were recorded in
    :param action_space: of the same
    :param metadata: what else ``minari.create_dataset_from_buffers`` takes: ``author``, ``description`` ...
    :return: the ``minari.MinariDataset``
    :raises RuntimeError: if Minari is not installed
    :raises ValueError: if there is such a dataset already, or the id is not one
    """
    minari = _minari()
    episodes = [
        minari.data_collector.EpisodeBuffer(id=number, **columns)
        for number, columns in enumerate(_episodes(demonstrations))
    ]
    with warnings.catch_warnings():
        # About each piece of metadata that is left out.
        warnings.filterwarnings("ignore", message=".* is set to None", category=UserWarning)
        warnings.filterwarnings("ignore", message="env_spec is None", category=UserWarning)
        return minari.create_dataset_from_buffers(
            dataset_id, episodes, observation_space=observation_space, action_space=action_space, **metadata
        )


def _episodes(demonstrations: Demonstrations) -> Iterator[dict[str, Any]]:
    """
    :param demonstrations: episodes
    :return: each as Minari stores it: of ``T`` steps, with ``T + 1`` observations and infos
    """
    t = demonstrations.transitions
    for end, length in zip(demonstrations.ends.tolist(), demonstrations.lengths.tolist(), strict=True):
        rows = slice(end - length, end)
        infos: dict[str, Any] = {"internal": _states(t.internal[rows], t.next_internal[rows])}
        infos |= {name: _since_reset(getattr(t, name)[rows]) for name in COLUMNS}
        if t.terms:
            infos["reward_terms"] = {name: _since_reset(term[rows]) for name, term in t.terms.items()}
        yield {
            "observations": tree_map(
                lambda now, then, rows=rows: _states(now[rows], then[rows]), t.observation, t.next_observation
            ),
            "actions": t.action[rows],
            "rewards": t.reward[rows],
            "terminations": t.terminated[rows],
            "truncations": t.truncated[rows],
            "infos": infos,
        }


def _states(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([before, after[-1:]])


def _since_reset(column: NDArray[Any]) -> NDArray[Any]:
    """
    :param column: of the steps, ``(T, ...)``
    :return: the same with a row of zeros for the reset, which reports none of it, ``(T + 1, ...)``
    """
    return np.concatenate([np.zeros_like(column[:1]), column])


def _minari() -> ModuleType:
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise RuntimeError("Minari is not installed: pip install 'persist-sb3[minari]'") from error
    return minari
