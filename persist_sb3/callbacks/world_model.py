"""Learns how the observation follows from the state and the action."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule

from persist_sb3.batch import flatten
from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.dynamics import DynamicsCallback
from persist_sb3.callbacks.forecasts import Forecasts, Models
from persist_sb3.callbacks.internal_model import InternalModelCallback
from persist_sb3.intrinsic.surprise import UNIT, SurpriseUnit
from persist_sb3.intrinsic.unit import BonusUnit
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.paths import locate, parse_path
from persist_sb3.schedules import Period

Kind = Literal["gaussian", "latent"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Scores that the unit of a bonus is measured on before it is paid.
ENOUGH = 1000


class WorldModelCallback(DynamicsCallback):
    """
    Trains a :class:`~persist_sb3.models.world.WorldModel`. Logs under ``persist/world_model/``: ``loss``; and of
    transitions before the model is trained on them ``nll``, ``disagreement``, ``error_ratio`` (the root mean squared
    error over that of predicting no change, averaged over the columns of the flattened observation that change: below 1
    something was learned) and, of the numbers among them, ``coverage`` (how often the 90 % interval holds the truth).

    Beside an ``InternalModelCallback``, every 64 steps of the environments it also tests predictions of the next 1, 4
    and 8 steps, whose actions are told, by the models as they were before: ``forecast_8`` is the root mean squared
    error of what is expected over that of "nothing changes", averaged over the columns of the state that
    change, and ``linear_8`` that of the linear regression inside the models by itself.

    With ``kind="latent"`` it is a :class:`~persist_sb3.callbacks.latent.LatentWorldModelCallback`, which trains a
    :class:`~persist_sb3.models.latent.LatentModel` instead and takes other parameters.

    Where :class:`~persist_sb3.wrappers.SurpriseBonus` pays by the model, this callback measures the unit: the running
    deviation of the score's discounted sum, from the first gradient step on. The unit, and the factor that a schedule
    gives, change between rollouts only; the bonus is 0 until 1000 scores were measured.
    ``callback.unit.set_factor(...)`` scales it further. Logs under ``persist/surprise/``: ``nll`` (mean surprise, in
    nats an entry), ``scale`` (the unit), ``factor``.

    :param net_arch: sizes of the hidden layers
    :param members: networks in the ensemble
    :param beta: between the likelihood (0) and the squared error (1), see
        :func:`~persist_sb3.models.prediction.beta_nll`
    :param buffer_size: transitions kept to learn from
    :param batch_size: transitions in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
    :param device: where to train
    :param seed: of initial weights, batches and bootstrap. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param kind: ``"gaussian"``: an ensemble that predicts from what is seen now; ``"latent"``: a network that remembers
        the episode
    :param schedule: factor on the weight of ``SurpriseBonus`` over training: a constant, ``"lin_1"`` (rl-zoo3's
        notation: linearly from 1 to 0), or a function of the remaining progress
    :param gamma: discount factor of the sum whose deviation is the unit of ``SurpriseBonus``
    :raises ValueError: if a parameter is out of its range
    """

    name = "world_model"

    def __new__(cls, *args: Any, kind: Kind = "gaussian", **kwargs: Any) -> "WorldModelCallback":
        if cls is WorldModelCallback and kind == "latent":
            from persist_sb3.callbacks.latent import LatentWorldModelCallback

            return super().__new__(LatentWorldModelCallback)
        return super().__new__(cls)

    def __init__(
        self,
        net_arch: Sequence[int] = (128, 128),
        members: int = 5,
        beta: float = 0.5,
        buffer_size: int = 100_000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_freq: Period = 4,
        gradient_steps: int = 1,
        learning_rate: float = 1e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
        *,
        kind: Kind = "gaussian",
        schedule: float | str | Schedule = 1.0,
        gamma: float = 0.99,
    ) -> None:
        super().__init__(
            net_arch,
            members,
            beta,
            buffer_size,
            batch_size,
            learning_starts,
            train_freq,
            gradient_steps,
            learning_rate,
            device,
            seed,
            log_path,
            verbose,
        )
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} must be {' or '.join(map(repr, KINDS))}")
        self.kind = kind
        self.schedule = schedule
        self.gamma = gamma
        #: Of the bonus.
        self.unit = BonusUnit(schedule, gamma)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: counters, optimiser, random generator, and the unit
        """
        return {**super().state_dict(), "unit": self.unit.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.unit.load_state_dict(state["unit"])

    def _on_training_start(self) -> None:
        if self.state.parts.get(f"{self.name}_training") is not self:
            self.unit.forget()
        self._shared_unit = SurpriseUnit()
        self.state.register(UNIT, self._shared_unit, shared=True)
        self._surprises: list[float] = []
        self._logged: dict[str, float] = {}
        super()._on_training_start()
        self.unit.restart(self.training_env.num_envs)
        self._forecasts = Forecasts(self._forecasters)

    def _on_rollout_start(self) -> None:
        if self.unit.scale.measured >= ENOUGH:
            scale, factor = self.unit.scale.std, self.unit.at(self.model._current_progress_remaining)
            self._shared_unit.value.fill_(factor / scale)
            self._logged = {"scale": scale, "factor": factor}

    def _make(self, spec: StateSpec) -> Any:
        return WorldModel(spec, self.net_arch, self.members, self._shown(spec))

    def _shown(self, spec: StateSpec) -> list[list[int]]:
        """
        :param spec: what the model is about
        :return: where the observation shows internal variables, unless as a one-hot code
        """
        entries: Mapping[str, str] = self.lookup("internal_entries")
        shown = []
        for variable, name in enumerate(spec.viability.dims):
            if name in entries:
                entry = locate(parse_path(entries[name])[1], spec.observation_space)
                columns = entry.columns(spec.observation_space)
                if len(columns) == 1:
                    shown.append([columns[0], variable])
        return shown

    def _forecasters(self) -> Models:
        internal = self.state.parts.get(InternalModelCallback.name)
        return self.actor, internal if isinstance(internal, InternalModel) else None, None

    def _on_step(self) -> bool:
        told = [info["persist"] for info in self.locals["infos"] if "surprise" in info.get("persist", ())]
        if told:
            self.unit.measure(np.array([one["surprise_score"] for one in told]))
            self._surprises += [one["surprise"] for one in told]
        self._forecasts.add(self._newest)
        return super()._on_step()

    def _newest(self) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
        """
        :return: states, encoded actions, and successors of the last step, and where an episode ended
        """
        new = self.store.read(self.locals)
        return *self._inputs(new), self.spec.encode(new.next_observation, new.next_internal), new.done

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        for key, value in self._forecasts.report().items():
            self.logger.record(f"persist/{self.name}/{key}", value)
        if self._surprises:
            self.logger.record("persist/surprise/nll", float(np.mean(self._surprises)))
            self._surprises.clear()
            for key, value in self._logged.items():
                self.logger.record(f"persist/surprise/{key}", value)

    def _update(self, batch: Any) -> Mapping[str, float]:
        transitions, _ = batch
        self.learner.compare(self.tensor(self._successor(transitions)), self.tensor(transitions.next_internal))
        return super()._update(batch)

    def _successor(self, transitions: Transitions) -> NDArray[np.float32]:
        return flatten(self.spec.observation_space, transitions.next_observation).astype(np.float32)

    def _report(self, error: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        changing = error["ratio"][np.isfinite(error["ratio"])]
        report = {"error_ratio": float(changing.mean())} if len(changing) else {}
        numeric = self.actor.heads.numeric
        if len(numeric):
            report["coverage"] = float(error["coverage"][numeric].mean())
        return report
