"""GridLife as vector environments, for Stable-Baselines3 and for gymnasium, both on the batch core."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from persist_sb3.envs.batch import Backend, GridLifeCore
from persist_sb3.envs.controls import Controls, Settings
from persist_sb3.envs.dynamics import GridLifeParams, positions
from persist_sb3.envs.interface import checked_layout_seed, forced_layout_seed
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.symmetry import Symmetry
from persist_sb3.viability import ViabilitySet


class Slot(Controls):
    """
    One world of a batch, with what :class:`~persist_sb3.envs.gridlife.GridLifeEnv` offers beside stepping.

    :param core: the batch
    :param index: which of its worlds
    :param settings: of the environment
    :param render_mode: None or "rgb_array"
    """

    def __init__(self, core: GridLifeCore, index: int, settings: Settings, render_mode: str | None) -> None:
        self._core = core
        self._row = np.array([index])
        self._adopt(settings)
        self._hidden_changed()
        self.render_mode = render_mode

    @property
    def elapsed(self) -> int:
        return int(self._core.elapsed[self._row[0]])

    def get_internal(self) -> NDArray[np.float64]:
        self._core.require_begun(self._row)
        return self._core.internal[self._row[0]].copy()

    def action_masks(self) -> NDArray[np.bool_]:
        self._interface.require_discrete()
        self._core.require_begun(self._row)
        return self._core.action_masks(self._row)[0]

    def snapshot(self) -> Snapshot:
        return self._core.snapshot(self._row)[0]

    def restore(self, snapshot: Snapshot) -> None:
        self._core.restore(snapshot.require_one(), self._row)
        self.forget_intervention()

    def render(self) -> NDArray[np.uint8] | None:
        """
        :return: with ``render_mode="rgb_array"``, a picture, ``(height, width, 3)``
        """
        return None if self.render_mode is None else self.picture()

    def _viability_changed(self) -> None:
        self._core.set_viability(self._viability, self._row)

    def _hidden_changed(self) -> None:
        self._core.set_hidden(self._hidden, self._row)


class _Batch:
    """What the two vector environments have in common: ``n`` worlds on one core, and their methods, batched."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    params: GridLifeParams

    def _create(self, num_envs: int, render_mode: str | None, backend: Backend, same_step: bool, settings: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(
                f"vector environments of GridLife render as 'rgb_array' only, not {render_mode!r}; "
                "SB3's VecEnv.render('human') shows those pictures on the screen"
            )
        checked = Settings(**settings)
        self.params = checked.params
        self._interface = checked.interface
        self._core = GridLifeCore(
            num_envs,
            checked.params,
            backend=backend,
            same_step=same_step,
            scent=checked.interface.scent,
            layouts=checked.layouts,
            viability=checked.viability,
        )
        self._slots = [Slot(self._core, i, checked, render_mode) for i in range(num_envs)]
        self._positions = positions(checked.params.size)

    @property
    def internal_names(self) -> tuple[str, ...]:
        """Names of the internal variables."""
        return self._slots[0].internal_names

    @property
    def viability(self) -> ViabilitySet:
        """The constraints in force, which end an episode (in world 0, where worlds were told different things)."""
        return self._slots[0].viability

    @property
    def setpoint(self) -> tuple[float, ...]:
        """Where the internal variables are at their best, ``(3,)``."""
        return self._slots[0].setpoint

    @property
    def weights(self) -> tuple[float, ...]:
        """How much a deviation of each internal variable matters, ``(3,)``."""
        return self._slots[0].weights

    @property
    def internal_entries(self) -> dict[str, str]:
        """Where the internal variables that are shown are in one world's observation."""
        return self._slots[0].internal_entries

    @property
    def window_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the flattened ``window`` in an observation."""
        return self._interface.window_shape

    @property
    def symmetries(self) -> list[Symmetry]:
        """The quarter turns and mirror images of the worlds."""
        return self._interface.symmetries()

    def get_internal(self) -> NDArray[np.float64]:
        """
        :return: the true internal variables, ``(n, 3)``
        """
        self._core.require_begun()
        return self._core.internal.copy()

    def set_constraints(self, constraints: Sequence[str]) -> None:
        """
        Change the constraints of all worlds, from the next step on; the tolerance becomes 1.

        :param constraints: limits, each on one internal variable
        :raises ValueError: if one is not
        """
        for slot in self._slots:
            slot.set_constraints(constraints)

    def set_tolerance(self, k: float) -> None:
        """
        Draw the declared constraints of all worlds together about the setpoint, from the next step on.

        :param k: below 1 wider, above 1 narrower than declared; calls do not accumulate
        :raises ValueError: if it is not positive
        """
        for slot in self._slots:
            slot.set_tolerance(k)

    def set_hidden(self, names: Sequence[str]) -> None:
        """
        Hide internal variables in all worlds: their entries of the observation read 0, from the next observation on.

        :param names: those to hide; all others are shown
        :raises ValueError: if there is no such variable
        """
        for slot in self._slots:
            slot.set_hidden(names)

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions do not run into the edge of the grid, ``(n, 5)``
        :raises TypeError: in the continuous form
        """
        self._interface.require_discrete()
        self._core.require_begun()
        return self._core.action_masks()

    def snapshot(self) -> Snapshot:
        """
        :return: the complete state of all worlds; what happens later does not change it
        :raises ResetNeeded: before the first reset
        """
        return self._core.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """
        Go back to a snapshot: the same actions then lead to the same trajectories, to the last bit.

        :param snapshot: one world, for all, or ``n`` worlds
        :raises ValueError: if its worlds have other parameters
        """
        self._core.restore(snapshot)
        self._forget_interventions(range(len(self._slots)))

    def _forget_interventions(self, rows: Iterable[int]) -> None:
        for i in rows:
            self._slots[i].forget_intervention()

    def _begin(self, seeds: Sequence[int | None], layout_seeds: Sequence[int | None], rows: NDArray[np.intp]) -> None:
        self._forget_interventions(rows)
        seeded = [i for i in rows if seeds[i] is not None]
        self._core.seed([int(seeds[i] or 0) for i in seeded], np.array(seeded, dtype=np.intp))
        drawn = np.array([i for i in rows if layout_seeds[i] is None], dtype=np.intp)
        forced = np.array([i for i in rows if layout_seeds[i] is not None], dtype=np.intp)
        self._core.begin(drawn)
        self._core.begin(forced, np.array([layout_seeds[i] for i in forced], dtype=np.int64))


class GridLifeVecEnv(_Batch, VecEnv):
    """
    GridLife as Stable-Baselines3's ``VecEnv``. It does what a ``DummyVecEnv`` of as many
    :class:`~persist_sb3.envs.gridlife.GridLifeEnv` does, to the last bit, only faster. Wrap it in ``VecMonitor``, as
    nothing keeps the episodes' returns inside.

    :param num_envs: number of environments, ``n``
    :param render_mode: None or "rgb_array"
    :param backend: "numba" (compiled), "numpy", or "auto": numba if it is installed; NumPy pays for hundreds of
        environments only
    :param settings: all other keywords of :class:`~persist_sb3.envs.gridlife.GridLifeEnv`
    """

    def __init__(
        self, num_envs: int, *, render_mode: str | None = None, backend: Backend = "auto", **settings: Any
    ) -> None:
        self._create(num_envs, render_mode, backend, True, settings)
        VecEnv.__init__(self, num_envs, self._interface.observation_space, self._interface.action_space)

    def reset(self) -> VecEnvObs:
        everyone = np.arange(self.num_envs)
        self._begin(self._seeds, [forced_layout_seed(options) for options in self._options], everyone)
        self._reset_seeds()
        self._reset_options()
        self._report_reset(everyone)
        return self._interface.shaped(self._core.observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._moves = self._interface.moves(np.asarray(actions))

    def step_wait(self) -> VecEnvStepReturn:
        core = self._core
        observations, rewards, terminated, truncated = core.step(self._moves)
        dones = (terminated | truncated).astype(bool)
        infos: list[dict[str, Any]] = [
            {"internal": internal, "position": position, "cost": cost, "TimeLimit.truncated": late}
            for internal, position, cost, late in zip(
                core.final_internal.copy(),
                [self._positions[cell] for cell in core.final_cells.tolist()],
                terminated.astype(float).tolist(),
                (truncated == 1).tolist(),
                strict=True,
            )
        ]
        ended = np.flatnonzero(dones)
        for i in ended:
            infos[i]["terminal_observation"] = self._interface.shaped(core.final_observations[i])
        self._forget_interventions(ended)
        self._report_reset(ended)
        return self._interface.shaped(observations), rewards.astype(np.float32), dones, infos

    def _report_reset(self, rows: NDArray[np.intp]) -> None:
        for i in rows:
            core = self._core
            self.reset_infos[i] = {
                "internal": core.internal[i].copy(),
                "position": self._positions[core.cells[i]],
                "layout_seed": int(core.layout_seeds[i]),
            }

    def close(self) -> None:
        """There is nothing to close."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return [slot.render() for slot in self._slots]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self._slots[i], attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        for i in self._get_indices(indices):
            setattr(self._slots[i], attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        return [getattr(self._slots[i], method_name)(*args, **kwargs) for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class GridLifeVectorEnv(_Batch, VectorEnv[Any, Any, Any]):
    """
    GridLife as gymnasium's ``VectorEnv``, what ``gymnasium.make_vec`` makes. It does what a ``SyncVectorEnv`` of as
    many :class:`~persist_sb3.envs.gridlife.GridLifeEnv` does, to the last bit, only faster.

    ``reset`` takes the options ``layout_seed`` (one for all, or one an environment) and ``reset_mask``.

    :param num_envs: number of environments, ``n``
    :param render_mode: None or "rgb_array"
    :param autoreset_mode: NEXT_STEP, SAME_STEP or DISABLED
    :param backend: "numba" (compiled), "numpy", or "auto": numba if it is installed; NumPy pays for hundreds of
        environments only
    :param settings: all other keywords of :class:`~persist_sb3.envs.gridlife.GridLifeEnv`
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        backend: Backend = "auto",
        **settings: Any,
    ) -> None:
        self._mode = AutoresetMode(autoreset_mode)
        self._create(num_envs, render_mode, backend, self._mode is AutoresetMode.SAME_STEP, settings)
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = self._interface.observation_space
        self.single_action_space = self._interface.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of environment 0, the others' follow it; or one an environment
        :param options: ``layout_seed`` plays the episodes on this layout, or these; ``reset_mask``, ``(n,)``, tells
            which environments begin one
        :return: observations and infos
        """
        n = self.num_envs
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = [None] * n if seed is None else [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(n, dtype=bool)))
        layout_seeds = options.pop("layout_seed", None)
        forced_layout_seed(options)
        each = list(layout_seeds) if np.ndim(layout_seeds) else [layout_seeds] * n
        if len(seeds) != n or mask.shape != (n,) or mask.dtype != bool or len(each) != n:
            raise ValueError(
                f"reset() of {n} environments needs as many seeds, layout seeds and bools in reset_mask, where they "
                f"are given one by one; there are {len(seeds)}, {len(each)} and {mask!r}"
            )
        rows = np.flatnonzero(mask)
        self._begin(seeds, [None if k is None else checked_layout_seed(k) for k in each], rows)
        self._over[rows] = False
        core = self._core
        infos = self._infos(mask, self._where(core.internal, core.cells) | {"layout_seed": core.layout_seeds})
        return self._interface.shaped(self._core.observations), infos

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        core, stepped = self._core, ~self._over
        if self._mode is AutoresetMode.DISABLED and not stepped.all():
            raise ResetNeeded(
                f"episodes of environments {np.flatnonzero(self._over)} ended: begin them anew with "
                "reset(options={'reset_mask': ...}), or choose another autoreset_mode"
            )
        observations, rewards, terminated, truncated = core.step(self._interface.moves(np.asarray(actions)))
        ended = (terminated | truncated).astype(bool)
        begun = ended if self._mode is AutoresetMode.SAME_STEP else self._over
        self._forget_interventions(np.flatnonzero(begun))
        cost = terminated.astype(np.float64)
        infos: dict[str, Any] = {}
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(ended):
                infos["final_obs"][i] = self._interface.shaped(core.final_observations[i])
            final = self._where(core.final_internal, core.final_cells) | {"cost": cost}
            infos["final_info"] = self._infos(ended, final)
            infos["_final_obs"], infos["_final_info"] = ended.copy(), ended.copy()
        infos |= self._infos(np.ones(self.num_envs, dtype=bool), self._where(core.internal, core.cells))
        infos |= self._infos(~begun, {"cost": cost}) | self._infos(begun, {"layout_seed": core.layout_seeds})
        self._over = ended & (self._mode is not AutoresetMode.SAME_STEP)
        return (
            self._interface.shaped(observations),
            rewards.copy(),
            terminated.astype(bool),
            truncated.astype(bool),
            infos,
        )

    def _where(self, internal: NDArray[np.float64], cells: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """
        :param internal: variables of the worlds, ``(n, 3)``
        :param cells: tiles of their agents, ``(n,)``
        :return: what each step and reset reports of them
        """
        return {"internal": internal, "position": np.stack(np.divmod(cells, self.params.size), axis=1)}

    @staticmethod
    def _infos(mask: NDArray[np.bool_], columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Infos as gymnasium's vector environments give them: only of those who report, zeros for the others."""
        if not mask.any():
            return {}
        infos: dict[str, Any] = {}
        for name, column in columns.items():
            infos[name] = np.where(mask.reshape(-1, *[1] * (column.ndim - 1)), column, 0)
            infos[f"_{name}"] = mask.copy()
        return infos

    def mark_interventions(self, slots: NDArray[np.intp], proposed: NDArray[Any], executed: NDArray[Any]) -> None:
        """
        Show in the pictures of the coming step that these actions were changed.

        :param slots: of which environments, ``(k,)``
        :param proposed: what the agents wanted to do, ``(k, ...)``
        :param executed: what is done instead, ``(k, ...)``
        """
        for slot, *actions in zip(slots.tolist(), proposed, executed, strict=True):
            self._slots[slot].mark_intervention(*actions)

    def render(self) -> tuple[Any, ...] | None:
        """
        :return: with ``render_mode="rgb_array"``, a picture of each world, ``(height, width, 3)``
        """
        return None if self.render_mode is None else tuple(slot.picture() for slot in self._slots)
