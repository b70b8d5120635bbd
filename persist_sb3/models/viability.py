"""The viability critic: how far inside its limits an agent can stay for ever, by state and action."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.models.base import Model
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.pieces import Pieces
from persist_sb3.models.spec import StateSpec

Floats = NDArray[np.float32]


class ViabilityCritic(Model):
    """
    ``Q(s, a)``: the least scaled margin (see :meth:`~persist_sb3.viability.ViabilitySet.margins`) that the agent meets
    from ``s`` on if it takes ``a`` and does its best afterwards, discounted toward the margin at hand: the discounted
    safety value of Hamilton-Jacobi reachability (Fisac et al., ICRA 2019). It is positive where the agent can stay
    inside. Every estimate is the least over an ensemble, which keeps errors from being sought out (Fujimoto et al.,
    ICML 2018).

    Beside it stands ``Q_j(s, a)`` for each constraint ``j``: the least of its own margins that is met when the actions
    are those best for ``Q``. It decides nothing, and tells which constraint is in danger.

    Enumerable actions (Discrete, MultiDiscrete, MultiBinary) have outputs of their own. Box actions are inputs, and a
    deterministic safe actor knows the best one. With ``pieces`` they have outputs, too: one for each of the
    :class:`~persist_sb3.models.pieces.Pieces` of the box, and the best action is a centre of theirs. That suits worlds
    where whole regions of actions do the same, which networks that are smooth in the action blur.

    A ``residual`` critic's networks say by how much these values differ from the margins at hand, which are known. It
    is right about a limit before it has been there: ``V = l + f``, with ``l`` the margin and ``f`` the network, is how
    Singh, Feng and Bansal ("Exact imposition of safety boundary conditions in neural reachable tubes", ICRA 2025) build
    the boundary in.

    :param spec: the environment's state and actions
    :param net_arch: sizes of the hidden layers, of the critics and of the actor
    :param members: critics in the ensemble, ``e``
    :param residual: learn differences from the margins at hand
    :param pieces: pieces of a Box, ``k``; 0 makes actions inputs
    :raises ValueError: if the actions are neither a Box nor few enough to be enumerated, or pieces are asked for and
        they are no Box
    """

    updates: torch.Tensor

    def __init__(
        self,
        spec: StateSpec,
        net_arch: Sequence[int] = (128, 128),
        members: int = 2,
        residual: bool = False,
        pieces: int = 0,
    ) -> None:
        super().__init__(spec, net_arch=list(net_arch), members=members, residual=residual, pieces=pieces)
        self.residual = residual
        #: ``Q`` and each ``Q_j``, ``1 + m``.
        self.heads = 1 + len(spec.viability.constraints)
        self.standardizer = Standardizer(spec.state_dim)
        if pieces and not spec.continuous:
            raise ValueError(
                f"pieces={pieces} divide a Box of actions, and {spec.action_space} has values of its own for each: "
                "leave pieces out"
            )
        self.pieces = Pieces(pieces, spec.action_dim) if pieces else None
        #: Whether an actor climbs the critics, since the best action cannot be looked up.
        self.climbed = spec.continuous and self.pieces is None
        if self.climbed:
            self.critics = EnsembleMLP(members, [spec.state_dim + spec.action_dim, *net_arch, self.heads])
            self.actor = EnsembleMLP(1, [spec.state_dim, *net_arch, spec.action_dim])
            self._fast_actor = NumpyEnsemble(self.actor)
        else:
            outputs = len(spec.actions) if self.pieces is None else pieces
            self.critics = EnsembleMLP(members, [spec.state_dim, *net_arch, outputs * self.heads])
        if residual:
            # Nothing differs until something was learned: what nobody has seen is then not left to chance.
            for parameter in (self.critics.weights[-1], self.critics.biases[-1]):
                torch.nn.init.zeros_(parameter)
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._fast = NumpyEnsemble(self.critics)
        self._fast_standardizer = self.standardizer.numpy()

    def forward(self, state: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :param action: encoded Box actions, ``(n, A)``; None if actions are enumerated, or for those at the centres of
            pieces
        :return: every member's ``Q`` and ``Q_j``, of every action that is enumerated or at a centre,
            ``(e, n, k, 1 + m)``, or of those given, with ``k = 1``
        """
        inputs = self.standardizer(state)
        if self.climbed:
            assert action is not None
            inputs = torch.cat([inputs, action], dim=1)
        values: torch.Tensor = self.critics(inputs).unflatten(2, (-1, self.heads))
        if self.pieces is not None and action is not None:
            values = torch.einsum("nk,enkh->enh", self.pieces(action), values)[:, :, None]
        elif self.pieces is not None:
            values = torch.einsum("ck,enkh->ench", self.pieces(self.pieces.actions), values)
        if self.residual:
            margins = self.spec.viability.margins(state[:, self.spec.observation_dim :])
            values = values + torch.cat([margins.amin(dim=1, keepdim=True), margins], dim=1)[:, None]
        return values

    def safe_action(self, state: torch.Tensor) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :return: the encoded Box action of the actor, which a critic of pieces does not have, ``(n, A)``
        """
        action: torch.Tensor = torch.tanh(self.actor(self.standardizer(state))[0])
        return action

    def values(self, state: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :return: ``Q`` and each ``Q_j`` of every enumerable action, or of those at the centres of pieces, the least over
            the ensemble, ``(n, k, 1 + m)``
        """
        values = self._fast(self._fast_standardizer(state))
        values = values.reshape(*values.shape[:2], -1, self.heads)
        if self.pieces is not None:
            values = self.pieces.centred()[1] @ values
        return self._from_margins(state, values.min(axis=0))

    def action_values(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded Box actions, one in each state, ``(n, A)``, or several, ``(n, k, A)``
        :return: ``Q`` and each ``Q_j``, the least over the ensemble, ``(n, 1 + m)`` or ``(n, k, 1 + m)``
        """
        several = action if action.ndim == 3 else action[:, None]
        (n, k), inputs = several.shape[:2], self._fast_standardizer(state)
        flat = several.reshape(n * k, -1)
        if self.pieces is None:
            values = self._fast(np.concatenate([inputs.repeat(k, axis=0), flat], axis=1))
            values = values.reshape(len(values), n, k, self.heads)
        else:
            values = self._fast(inputs)
            weights = self.pieces.weights(flat).reshape(n, k, -1)
            values = weights @ values.reshape(*values.shape[:2], -1, self.heads)
        values = self._from_margins(state, values.min(axis=0))
        return values if action.ndim == 3 else values[:, 0]

    def _from_margins(self, state: Floats, values: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param values: what the networks say, ``(n, k, 1 + m)``
        :return: what that means: the same, or differences from the margins at hand, ``(n, k, 1 + m)``
        """
        if self.residual:
            margins = self.spec.viability.margins(state[:, self.spec.observation_dim :])
            values[:, :, 0] += margins.min(axis=1)[:, None]
            values[:, :, 1:] += margins[:, None]
        return values

    def action_slopes(self, state: Floats, action: Floats) -> tuple[Floats, Floats]:
        """
        :param state: ``(n, D)``
        :param action: encoded Box actions, ``(n, A)``
        :return: ``Q``, the least over the ensemble, ``(n,)``, and its gradient by the action, ``(n, A)``
        """
        inputs = torch.as_tensor(action).requires_grad_()
        values = self(torch.as_tensor(state), inputs)[:, :, 0, 0].min(dim=0).values
        (slopes,) = torch.autograd.grad(values.sum(), inputs)
        return values.detach().numpy(), slopes.numpy()

    def best_action(self, state: Floats) -> NDArray[Any]:
        """
        :param state: ``(n, D)``
        :return: the safest action: an index into ``spec.actions``, ``(n,)``, or an encoded Box action, ``(n, A)``
        """
        if self.climbed:
            return np.tanh(self._fast_actor(self._fast_standardizer(state))[0])
        best = self.values(state)[:, :, 0].argmax(axis=1)
        return best if self.pieces is None else self.pieces.centred()[0][best]

    def viability(self, state: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :return: ``V(s)``, the value of the safest action, ``(n,)``
        """
        if self.climbed:
            return self.action_values(state, self.best_action(state))[:, 0]
        values: Floats = self.values(state)[:, :, 0].max(axis=1)
        return values


def reachability_target(
    margin: torch.Tensor, next_value: torch.Tensor, terminal: torch.Tensor, gamma: float
) -> torch.Tensor:
    """
    The discounted safety Bellman backup (Fisac et al., "Bridging Hamilton-Jacobi safety analysis and reinforcement
    learning", ICRA 2019, equation 7): ``(1 - gamma) g' + gamma min(g', V')``, and ``g'`` where nothing follows.

    :param margin: scaled margins after the step, ``g'``, ``(n, ...)``
    :param next_value: values of the state after it, ``V'``, ``(n, ...)``
    :param terminal: the episode ended there by itself, bool, broadcast to the others
    :param gamma: discount factor, in ``[0, 1)``
    :return: ``(n, ...)``
    """
    worst = torch.minimum(margin, next_value)
    return torch.where(terminal, margin, (1.0 - gamma) * margin + gamma * worst)
