"""What SB3's policies need to know of an environment's symmetries."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from torch import nn

from persist_sb3.models.equivariant import Group
from persist_sb3.symmetry import Symmetry

NO_SDE = "use_sde=True: state-dependent exploration is not equivariant; use use_sde=False"

#: Keys of a Dict observation under which layers tell what they know about internal variables, and of them alone.
TOLD = ("belief", "setpoint")

#: Symmetries themselves, or ids of registered environments that declare them.
Declared = str | Iterable[str] | Iterable[Symmetry]


def symmetries_of(declared: Declared, space: spaces.Space[Any]) -> Sequence[Symmetry]:
    """
    :param declared: symmetries, which may be none, or the id of a registered environment that declares them; of several
        ids, the first whose environment has these observations
    :param space: of the observations that they are of
    :return: the symmetries
    :raises ValueError: if that environment declares none, or has other observations
    """
    given = [declared] if isinstance(declared, str) else list(declared)
    ids = [each for each in given if isinstance(each, str)]
    if len(ids) < len(given) or not given:
        return [each for each in given if isinstance(each, Symmetry)]
    shown = []
    for env_id in ids:
        env = gym.make(env_id)
        found: Sequence[Symmetry] = env.get_wrapper_attr("symmetries") if env.has_wrapper_attr("symmetries") else ()
        env.close()
        if not found:
            raise ValueError(
                f"symmetries={declared!r}: {env_id} declares no symmetries; give a list of "
                "persist_sb3.symmetry.Symmetry"
            )
        if spaces.flatdim(env.observation_space) == spaces.flatdim(space):
            return found
        told = _of_longer(found, env.observation_space, space)
        if told:
            return told
        shown.append(f"{env_id} shows {env.observation_space}")
    raise ValueError(
        f"symmetries={declared!r}: the policy sees {space}, and {', '.join(shown)}; a layer that adds to observations "
        "asks for a list of its own"
    )


def _of_longer(
    symmetries: Sequence[Symmetry], inner: spaces.Space[Any], outer: spaces.Space[Any]
) -> Sequence[Symmetry]:
    """
    :param symmetries: of an environment
    :param inner: its observations
    :param outer: those behind its layers
    :return: the symmetries of these, if all they add is what is told about internal variables (:data:`TOLD`), and if no
        symmetry changes those; otherwise none
    """
    if not (isinstance(inner, spaces.Dict) and isinstance(outer, spaces.Dict)) or any(
        map(_moves_internals, symmetries)
    ):
        return ()
    kept = {key: part.shape for key, part in outer.items() if key not in TOLD}
    if kept != {key: part.shape for key, part in inner.items()}:
        return ()
    sizes = {key: spaces.flatdim(part) for key, part in outer.items()}
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())), strict=True))
    # Where each entry of the shorter observation is in the longer one.
    place = np.concatenate([np.arange(ends[key] - sizes[key], ends[key]) for key in inner])
    longer = []
    for symmetry in symmetries:
        columns = np.arange(sum(sizes.values()))
        columns[place] = place if symmetry.columns is None else place[np.asarray(symmetry.columns)]
        longer.append(replace(symmetry, columns=columns, flip=place[np.asarray(symmetry.flip, dtype=np.intp)]))
    return longer


def _moves_internals(symmetry: Symmetry) -> bool:
    columns = symmetry.internal_columns
    return len(symmetry.internal_flip) > 0 or (columns is not None and list(columns) != list(range(len(columns))))


def group_of(declared: Declared, space: spaces.Space[Any], actions: spaces.Space[Any], extractor: nn.Module) -> Group:
    """
    :param declared: symmetries, or the id of a registered environment that declares them
    :param space: of the observations
    :param actions: their space
    :param extractor: SB3's features extractor
    :return: their group
    :raises ValueError: if the symmetries are none of these observations and actions, or no group
    """
    if not isinstance(actions, spaces.Discrete | spaces.Box):
        raise ValueError(f"an equivariant policy is for Discrete and Box actions, and these are {actions}")
    size = spaces.flatdim(space)
    features = getattr(extractor, "features_dim", size)
    if features != size:
        raise ValueError(
            f"{type(extractor).__name__} makes {features} features of {space}, which has {size} entries: symmetries "
            "are those of flat observations, so the features extractor may only flatten"
        )
    choices = int(actions.n) if isinstance(actions, spaces.Discrete) else int(np.prod(actions.shape))
    return Group(symmetries_of(declared, space), size, choices, isinstance(actions, spaces.Discrete))


class Symmetric:
    """
    What SB3's policies need so that their networks can commute with the environment's symmetries.

    :param symmetries: of the observation that the policy sees and of its actions: a list of
        :class:`~persist_sb3.symmetry.Symmetry`, or the id of an environment that declares them (of several ids, the
        first that has these observations). With the identity they must make a group: products of symmetries are among
        them
    :param kwargs: of the policy; widths in ``net_arch`` must be multiples of the number of symmetries, with the
        identity
    :raises ValueError: if the symmetries are none of these observations and actions, or no group; or if a layer cannot
        be equivariant
    """

    def __init__(self, *args: Any, symmetries: Declared, **kwargs: Any) -> None:
        self.symmetries = symmetries
        self._group: Group | None = None
        super().__init__(*args, **kwargs)

    def _group_behind(self: Any, extractor: nn.Module) -> Group:
        """
        :param extractor: features extractor of a network
        :return: the group that acts on its features and on the actions, found once
        """
        if self._group is None:
            self._group = group_of(self.symmetries, self.observation_space, self.action_space, extractor)
        group: Group = self._group
        return group

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "symmetries": self.symmetries}  # type: ignore[misc]
