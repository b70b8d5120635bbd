"""Learns from what happens how far inside its limits the agent can stay."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from persist_sb3.buffers import Transitions
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic, reachability_target


class ViabilityCallback(LearningCallback):
    """
    Trains a :class:`~persist_sb3.models.viability.ViabilityCritic` off-policy on every executed action, whoever chose
    it, by the discounted safety Bellman backup of Hamilton-Jacobi reachability, with a slowly following target
    ensemble. Logs under ``persist/viability/``: ``loss``, ``value`` (mean over the batch).

    :param gamma: discount factor: the backup looks about ``1 / (1 - gamma)`` steps ahead
    :param tau: share by which the target moves toward the critic at each gradient step
    :param net_arch: sizes of the hidden layers
    :param members: critics in the ensemble
    :param buffer_size: transitions kept to learn from
    :param batch_size: transitions in a gradient step
    :param learning_starts: transitions collected before the first gradient step
    :param train_freq: steps of the vectorised environment between two trainings
    :param gradient_steps: gradient steps in each training
    :param learning_rate: of Adam
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
        gamma: float = 0.95,
        tau: float = 0.01,
        net_arch: Sequence[int] = (128, 128),
        members: int = 2,
        buffer_size: int = 300_000,
        batch_size: int = 256,
        learning_starts: int = 1000,
        train_freq: int = 2,
        gradient_steps: int = 1,
        learning_rate: float = 1e-3,
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
        if not 0.0 <= gamma < 1.0:
            raise ValueError(f"gamma={gamma} must be in [0, 1): the backup contracts only if it is below 1")
        if not 0.0 < tau <= 1.0:
            raise ValueError(f"tau={tau} must be in (0, 1]")
        self.gamma = gamma
        self.tau = tau
        self.net_arch = net_arch
        self.members = members

    def _make(self, spec: StateSpec) -> ViabilityCritic:
        return ViabilityCritic(spec, self.net_arch, self.members)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        # Made with the optimiser, from the learner as it was loaded.
        self.target = copy.deepcopy(self.learner).requires_grad_(False)
        return self.learner.critics.parameters()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])

    def _update(self, batch: Transitions) -> Mapping[str, float]:
        state = self.tensor(self.spec.encode(batch.observation, batch.internal))
        next_state = self.tensor(self.spec.encode(batch.next_observation, batch.next_internal))
        margins = self.spec.viability.margins(batch.next_internal)
        margin = self.tensor(np.concatenate([margins.min(axis=1, keepdims=True), margins], axis=1))
        terminal = torch.as_tensor(batch.terminated, device=state.device)
        rows = torch.arange(len(state), device=state.device)
        self.learner.standardizer.update(state)
        with torch.no_grad():
            values = self.target(next_state).min(dim=0).values
            following = values[rows, values[:, :, 0].argmax(dim=1)]
            target = reachability_target(margin, following, terminal[:, None], self.gamma)
        chosen = torch.as_tensor(self.spec.index(batch.executed_action), device=state.device)
        predicted = self.learner(state)[:, rows, chosen]
        loss = (predicted - target).square().mean(dim=(0, 1)).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.learner.updates += 1
        with torch.no_grad():
            for old, new in zip(self.target.critics.parameters(), self.learner.critics.parameters(), strict=True):
                old.lerp_(new, self.tau)
            self.target.standardizer.load_state_dict(self.learner.standardizer.state_dict())
        return {"loss": float(loss.detach()), "value": float(predicted[..., 0].detach().mean())}
