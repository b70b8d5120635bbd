"""Learns from what happens how far inside its limits the agent can stay."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule

from persist_sb3.buffers import (
    CounterExamples,
    CounterfactualTransitions,
    Demonstrations,
    NearBoundaryBuffer,
    Transitions,
    TransitionStore,
)
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.models.objectives import ObjectiveName, make_objective
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.schedules import Period


class ViabilityCallback(LearningCallback):
    """
    Trains a :class:`~persist_sb3.models.viability.ViabilityCritic` off-policy on every executed action, whoever chose
    it, by the discounted safety Bellman backup of Hamilton-Jacobi reachability (or another ``objective``), with a
    slowly following target ensemble. Logs under ``persist/viability/``: ``loss``, ``value`` (mean over the batch).

    With demonstrations it is first trained on those, and then on a share of them in every batch. They show no harm, so
    let the shield wait (``min_updates``) until the critic has seen some.

    Box actions are encoded in ``[-1, 1]``, and a deterministic safe actor learns the safest one, as in TD3 (Fujimoto et
    al., ICML 2018): it climbs the slowly following critics, and the backup smooths the value over a little noise on
    what its own slow follower does.

    :param objective: what its values are: ``"reachability"``, or ``"classifier"``, whose values are no margins, so that
        no curriculum can widen the constraints (see :mod:`~persist_sb3.models.objectives`)
    :param objective_kwargs: parameters of the objective's class, :class:`~persist_sb3.models.objectives.Reachability`
        or :class:`~persist_sb3.models.objectives.Classifier`
    :param gamma: discount factor: the backup looks about ``1 / (1 - gamma)`` steps ahead
    :param tau: share by which the target moves toward the critic at each gradient step
    :param net_arch: sizes of the hidden layers
    :param members: critics in the ensemble
    :param residual: let the networks learn by how much values differ from the margins at hand, which are known (see
        :class:`~persist_sb3.models.viability.ViabilityCritic`): the critic then knows a limit where the agent has not
        been yet
    :param pieces: of a Box of actions, each with values of its own (see
        :class:`~persist_sb3.models.pieces.Pieces`), for worlds where whole regions of actions do the same. 0 for values
        that are smooth in the action
    :param target_noise: standard deviation of that noise, clipped at 2.5 of them, in half-ranges of the action
    :param demonstrations: safe episodes, or the file of :meth:`Demonstrations.save
        <persist_sb3.buffers.Demonstrations.save>` that holds them
    :param demonstration_share: part of each batch that is drawn from them
    :param pretrain_steps: gradient steps on them before the first step of the agent
    :param counter_examples: part of each batch before the first step that is drawn from outside the limits (see
        :class:`~persist_sb3.buffers.CounterExamples`)
    :param near_boundary: part of each batch that is drawn from transitions near the boundary, or of which the ensemble
        disagrees most (see :class:`~persist_sb3.buffers.NearBoundaryBuffer`)
    :param near_boundary_eps: scaled margin below which a state is near the boundary
    :param disagreement_quantile: the ensemble disagrees about a transition if its values differ by more than this
        quantile of recent ones; None asks only for what is near
    :param counterfactual_share: part of each batch, those before the first step included, in which internal variables
        are others than they were, so that the critic learns of deaths that nobody died (see
        :class:`~persist_sb3.buffers.CounterfactualTransitions`). The observation must show all of them
    :param augment: learn each transition in one of its mirror images, drawn anew each time, by the symmetries that the
        environment declares (see :class:`~persist_sb3.symmetry.Symmetry`)
    :param buffer_size: transitions kept to learn from
    :param batch_size: transitions in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam: a number, ``"lin_0.001"`` (linearly from that to 0), or a function of the remaining
        progress
    :param device: where to train
    :param seed: of initial weights and batches. Default: the algorithm's
    :param log_path: folder for files that the callback writes
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a parameter is out of its range
    """

    name = "viability"
    actor: ViabilityCritic
    learner: ViabilityCritic

    def __init__(
        self,
        objective: ObjectiveName = "reachability",
        objective_kwargs: Mapping[str, Any] | None = None,
        gamma: float = 0.95,
        tau: float = 0.01,
        net_arch: Sequence[int] = (128, 128),
        members: int = 2,
        residual: bool = False,
        pieces: int = 0,
        target_noise: float = 0.1,
        demonstrations: Demonstrations | str | os.PathLike[str] | None = None,
        demonstration_share: float = 0.25,
        pretrain_steps: int = 2000,
        counter_examples: float = 0.0,
        near_boundary: float = 0.0,
        near_boundary_eps: float = 0.1,
        disagreement_quantile: float | None = 0.95,
        counterfactual_share: float = 0.0,
        augment: bool = False,
        buffer_size: int = 300_000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_freq: Period = 2,
        gradient_steps: int = 1,
        learning_rate: float | str | Schedule = 1e-3,
        device: str = "cpu",
        seed: int | None = None,
        log_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
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
        self.objective = make_objective(objective, objective_kwargs)
        if not 0.0 <= gamma < 1.0:
            raise ValueError(f"gamma={gamma} must be in [0, 1): the backup contracts only if it is below 1")
        if not 0.0 < tau <= 1.0:
            raise ValueError(f"tau={tau} must be in (0, 1]")
        if not (pieces == 0 or pieces > 1):
            raise ValueError(f"pieces={pieces} must be 0, or at least 2")
        if not target_noise >= 0.0:
            raise ValueError(f"target_noise={target_noise} must be at least 0")
        if not 0.0 < demonstration_share < 1.0:
            raise ValueError(f"demonstration_share={demonstration_share} must be in (0, 1)")
        if pretrain_steps < 0:
            raise ValueError(f"pretrain_steps={pretrain_steps} must not be negative")
        if not 0.0 <= counter_examples < 1.0:
            raise ValueError(f"counter_examples={counter_examples} must be in [0, 1)")
        if not 0.0 <= near_boundary <= 1.0:
            raise ValueError(f"near_boundary={near_boundary} must be in [0, 1]")
        if not near_boundary_eps > 0.0:
            raise ValueError(f"near_boundary_eps={near_boundary_eps} must be positive")
        if disagreement_quantile is not None and not 0.0 < disagreement_quantile < 1.0:
            raise ValueError(f"disagreement_quantile={disagreement_quantile} must be in (0, 1), or None")
        if not 0.0 <= counterfactual_share <= 1.0:
            raise ValueError(f"counterfactual_share={counterfactual_share} must be in [0, 1]")
        self.counter_examples = counter_examples
        self.near_boundary = near_boundary
        self.near_boundary_eps = near_boundary_eps
        self.disagreement_quantile = disagreement_quantile
        self.target_noise = target_noise
        self.demonstrations = demonstrations
        self.demonstration_share = demonstration_share
        self.pretrain_steps = pretrain_steps
        self.counterfactual_share = counterfactual_share
        self.augment = augment
        self.gamma = gamma
        self.tau = tau
        self.net_arch = net_arch
        self.members = members
        self.residual = residual
        self.pieces = pieces
        self._worlds: CounterfactualTransitions | None = None
        self._learned: Mapping[str, Any] | None = None

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._symmetries = self.symmetry_group(self.spec) if self.augment else None
        self._near = self._watch_boundary() if self.near_boundary else None
        self._source: TransitionStore | NearBoundaryBuffer | CounterfactualTransitions
        self._source = self.store if self._near is None else self._near
        if self.counterfactual_share:
            self._source = self._worlds = self._tell_others(self._source)
        if self.demonstrations is None:
            return
        demonstrations = self.demonstrations
        if not isinstance(demonstrations, Demonstrations):
            demonstrations = Demonstrations.load(demonstrations, self.lookup("viability"))
        self.store.preload(demonstrations.transitions)
        outside = CounterExamples(self.spec, self.lookup("internal_entries")) if self.counter_examples else None
        while self.updates < self.pretrain_steps:
            batch = self._source.sample(self.batch_size, self.generator, demonstration_share=1.0)
            if outside is not None:
                batch = outside.mixed(batch, self.counter_examples, self.generator)
            self._update(batch)
            self.updates += 1
        self._publish()

    def _watch_boundary(self) -> NearBoundaryBuffer:
        quantile = self.disagreement_quantile
        return NearBoundaryBuffer(
            self.store,
            self.spec.viability,
            eps=self.near_boundary_eps,
            share=self.near_boundary,
            disagreement=None if quantile is None else self._disagreement,
            quantile=quantile or 0.5,
        )

    def _tell_others(self, source: TransitionStore | NearBoundaryBuffer) -> CounterfactualTransitions:
        """
        :param source: draws what took place
        :return: the same, and what would have
        :raises RuntimeError: if the observation does not show every internal variable as it is, as a number
        """
        who, instead = f"{type(self).__name__}(counterfactual_share={self.counterfactual_share})", "leave it 0"
        self.refuse_degraded(who, instead)
        spec = StateSpec(self.spec.observation_space, self.spec.action_space, self.lookup("viability"))
        try:
            return CounterfactualTransitions(
                self.store,
                spec,
                self.lookup("internal_entries"),
                share=self.counterfactual_share,
                source=source,
                learned=self._learned,
            )
        except ValueError as error:
            raise RuntimeError(f"{who}: {error}. Show it, or {instead}") from error

    def _disagreement(self, transitions: Transitions) -> NDArray[np.float32]:
        """
        :param transitions: ``(n, ...)``
        :return: standard deviation over the ensemble of the values of what was executed, ``(n,)``
        """
        state = self.tensor(self.spec.encode(transitions.observation, transitions.internal))
        with torch.no_grad():
            values, chosen = self._values(state, transitions.executed_action)
            executed = values[:, torch.arange(len(state), device=state.device), chosen, 0]
        spread: NDArray[np.float32] = executed.std(dim=0, correction=0).cpu().numpy()
        return spread

    def _on_step(self) -> bool:
        if self._near is not None:
            self._near.add(self.store.read(self.locals))
        return super()._on_step()

    def _sample(self) -> Transitions:
        share = 0.0 if self.demonstrations is None else self.demonstration_share
        return self._source.sample(self.batch_size, self.generator, share)

    def _make(self, spec: StateSpec) -> ViabilityCritic:
        return ViabilityCritic(spec, self.net_arch, self.members, self.residual, self.pieces)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        # Made with the optimiser, from the learner as it was loaded.
        self.target = copy.deepcopy(self.learner).requires_grad_(False)
        yield from self.learner.critics.parameters()
        if self.learner.pieces is not None:
            yield from self.learner.pieces.parameters()
        if self.learner.climbed:
            yield from self.learner.actor.parameters()

    def state_dict(self) -> dict[str, Any]:
        learned = {} if self._worlds is None else {"counterfactuals": self._worlds.state_dict()}
        return {**super().state_dict(), "target": self.target.state_dict(), **learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])
        self._learned = state.get("counterfactuals")

    def _update(self, batch: Transitions) -> Mapping[str, float]:
        before = self.spec.encode(batch.observation, batch.internal)
        after = self.spec.encode(batch.next_observation, batch.next_internal)
        executed, internal = batch.executed_action, batch.next_internal
        if self._symmetries is not None:
            which = self._symmetries.draw(len(batch), self.generator)
            before, after = self._symmetries.state(which, before), self._symmetries.state(which, after)
            executed = self._symmetries.action(which, executed)
            internal = after[:, self.spec.observation_dim :].astype(np.float64)
        state, next_state = self.tensor(before), self.tensor(after)
        margins = self.spec.viability.margins(internal)
        margin = self.tensor(np.concatenate([margins.min(axis=1, keepdims=True), margins], axis=1))
        terminal = torch.as_tensor(batch.terminated, device=state.device)
        self.learner.standardizer.update(state)
        with torch.no_grad():
            following = self._following(next_state)
        values, chosen = self._values(state, executed)
        predicted = values[:, torch.arange(len(state), device=state.device), chosen]
        loss = self.objective(predicted, margin, following, terminal[:, None], self.gamma)
        if self.learner.climbed:
            # Nothing but the actor learns from this: the target's own parameters ask for no gradient.
            climbed = self.target(state, self.learner.safe_action(state))[:, :, 0, 0]
            loss = loss - climbed.amin(dim=0).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.learner.updates += 1
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.learner.parameters(), strict=True):
                old.lerp_(new, self.tau)
            self.target.standardizer.load_state_dict(self.learner.standardizer.state_dict())
        return {"loss": float(loss.detach()), "value": float(predicted[..., 0].detach().mean())}

    def _values(self, state: torch.Tensor, action: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param state: ``(n, D)``
        :param action: in the units of the action space, ``(n, ...)``
        :return: values of every action, or of just this one if it is a Box action, ``(e, n, k, 1 + m)``, and which of
            the ``k`` it is, ``(n,)``
        """
        if self.spec.continuous:
            encoded = self.tensor(self.spec.encode_action(action).clip(-1.0, 1.0))
            return self.learner(state, encoded), torch.zeros(len(state), dtype=torch.int64, device=state.device)
        return self.learner(state), torch.as_tensor(self.spec.index(action), device=state.device)

    def _following(self, state: torch.Tensor) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :return: what the target gives its safest action, ``(n, 1 + m)``
        """
        if self.learner.climbed:
            noise = self.target_noise * self.generator.standard_normal((len(state), self.spec.action_dim)).clip(
                -2.5, 2.5
            )
            action = (self.target.safe_action(state) + self.tensor(noise)).clamp(-1.0, 1.0)
            following: torch.Tensor = self.target(state, action)[:, :, 0].amin(dim=0)
            return following
        values = self.target(state).amin(dim=0)
        return values[torch.arange(len(state), device=state.device), values[:, :, 0].argmax(dim=1)]
