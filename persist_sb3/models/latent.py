"""The latent world model: a memory of the episode, and what follows from it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from persist_sb3.draws import Draws, Noise, hash_rows
from persist_sb3.models.categorical import balanced_kl, log_unimix, straight_through
from persist_sb3.models.heads import Floats, Heads
from persist_sb3.models.networks import Block, fast_gru, fast_linear, symlog
from persist_sb3.models.observation import ObservationModel, check_shown
from persist_sb3.models.prediction import Clip, FastDistribution, PredictiveModel, Units
from persist_sb3.models.spec import StateSpec

#: Nats of divergence that cost nothing, and the weights with which prior and posterior learn from the rest.
FREE_NATS, DYNAMICS, REPRESENTATION = 1.0, 1.0, 0.1


class Belief(NamedTuple):
    """
    What is known of ``n`` running episodes besides what is seen now.

    :param memory: of the recurrent network, ``(n, gru_size)``
    :param latent: one-hot codes of the categorical variables, ``(n, groups * classes)``
    """

    memory: Floats
    latent: Floats

    def rows(self, rows: NDArray[np.intp]) -> "Belief":
        """
        :param rows: which, ``(k,)``
        :return: these rows
        """
        return Belief(self.memory[rows], self.latent[rows])


class Losses(NamedTuple):
    """
    :param total: what is minimised, per entry of the state
    :param divergence: ``KL(posterior || prior)`` a step, in nats, without free nats or weights
    """

    total: torch.Tensor
    divergence: torch.Tensor


class LatentModel(ObservationModel, PredictiveModel):
    """
    A recurrent state-space model in the manner of DreamerV3 (Hafner et al., "Mastering diverse domains through world
    models", 2023) of the whole state ``s' = [o', x']``. A GRU remembers the episode; categorical variables tell apart
    what may have happened; both together say how ``s'`` differs from what a linear regression on ``s`` and the action
    expects. What cannot be seen now but could be seen or inferred before (a velocity, what lies behind the edge of the
    view) is predicted from memory.

    Unlike Dreamer's, it sees the last observation, imagined or real, when it goes on, so its latent variables need not
    carry what the observation shows, and imagination yields states that critics and policies can judge.

    Predictions take a :class:`Belief` about running episodes, which :class:`LatentFilter` keeps. Without one they begin
    with what the observation alone says, as at an episode's start.

    :meth:`predict` and :meth:`loss` are torch's; everything else is NumPy, for the small batches of layers.

    :param spec: the environment's state and actions
    :param gru_size: size of the memory
    :param units: size of the hidden layers
    :param groups: categorical variables
    :param classes: of each
    :param unimix: share of the uniform distribution in theirs
    :param samples: of the latent variables, from which likelihoods and moments are computed
    :param shown: internal variables that the observation shows, as in :class:`~persist_sb3.models.world.WorldModel`
    :raises ValueError: if a size is below 1, ``unimix`` is out of its range, or there is no such column or variable
    """

    # Numbers without bounds, on the device of the model.
    _shrunk: torch.Tensor

    #: There is one network: what it has not learned does not show as disagreement.
    members = 1

    def __init__(
        self,
        spec: StateSpec,
        gru_size: int = 128,
        units: int = 128,
        groups: int = 8,
        classes: int = 8,
        unimix: float = 0.01,
        samples: int = 16,
        shown: Sequence[Sequence[int]] = (),
    ) -> None:
        sizes = {"gru_size": gru_size, "units": units, "groups": groups, "classes": classes, "samples": samples}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if not 0.0 <= unimix <= 1.0:
            raise ValueError(f"unimix={unimix} must be in [0, 1]")
        pairs = check_shown(spec, shown)
        viability = spec.viability
        heads = Heads.of_space(spec.observation_space) + Heads.of_numbers(viability.low, viability.high)
        super().__init__(spec, slice(0, spec.state_dim), heads, **sizes, unimix=unimix, shown=pairs)
        self._show(pairs)
        self.samples = samples
        self.unimix = unimix
        self.groups = groups
        self.classes = classes
        self.gru_size = gru_size
        codes = groups * classes
        self.encoder = Block(spec.state_dim, units)
        self.mixer = Block(codes + units + spec.action_dim, units)
        self.cell = nn.GRUCell(units, gru_size)
        self.prior = nn.Sequential(Block(gru_size, units), nn.Linear(units, codes))
        self.posterior = nn.Sequential(Block(gru_size + units, units), nn.Linear(units, codes))
        self.decoder = nn.Sequential(Block(gru_size + codes, units), nn.Linear(units, self.outputs))
        with torch.no_grad():
            for last in self.decoder[1].parameters():
                last[-1] = 0.0
        unbounded = ~(np.isfinite(heads.low) & np.isfinite(heads.high))
        self._unbounded = heads.numeric[unbounded]
        self.register_buffer("_shrunk", torch.tensor(self._unbounded), persistent=False)
        self._observed = int((heads.numeric < spec.observation_dim).sum())
        self._fast_standardizer = self.standardizer.numpy()

    # In torch

    def loss(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        valid: torch.Tensor,
        forget: torch.Tensor,
        gumbel: torch.Tensor,
        beta: float,
    ) -> Losses:
        """
        :param state: of stretches of episodes, the last one's successor included, ``(b, l + 1, D)``
        :param action: encoded, ``(b, l, A)``
        :param valid: which steps count, ``(b, l)`` bool
        :param forget: before which steps the past is forgotten, as it is before the first, ``(b, l)`` bool
        :param gumbel: standard Gumbel noise, ``(b, l + 1, groups, classes)``
        :param beta: of the numbers' likelihood, see :func:`~persist_sb3.models.prediction.beta_nll`
        :return: means over the steps that count
        """
        length = action.shape[1]
        seen = self.encoder(self.standardizer(self._seen(state)))
        nothing = state.new_zeros(len(state) * length, self.gru_size)
        log_q = self._log_p(self.posterior, nothing, seen[:, :-1].flatten(0, 1))
        fresh = straight_through(log_q.unflatten(0, (-1, length)), gumbel[:, :-1])
        memory, latent = nothing[: len(state)], fresh[:, 0]
        memories, posteriors, latents = [], [], []
        for step in range(length):
            lost = forget[:, step, None]
            memory = memory.masked_fill(lost, 0.0)
            latent = torch.where(lost[..., None], fresh[:, step], latent)
            mixed = self.mixer(torch.cat([latent.flatten(1), seen[:, step], action[:, step]], dim=1))
            memory = self.cell(mixed, memory)
            log_q = self._log_p(self.posterior, memory, seen[:, step + 1])
            latent = straight_through(log_q, gumbel[:, step + 1])
            memories.append(memory)
            posteriors.append(log_q)
            latents.append(latent)
        memory, latent, log_q = (torch.stack(steps, dim=1).flatten(0, 1) for steps in (memories, latents, posteriors))
        log_p = self._log_p(self.prior, memory)
        out = self._split(self.decoder(torch.cat([memory, latent.flatten(1)], dim=1))[None])
        expected = self._behind(Clip.apply(out.gate), state[:, :-1].flatten(0, 1), action.flatten(0, 1))
        explained = self._losses(out, state[:, 1:].flatten(0, 1), *expected, beta)[0]
        divergence = balanced_kl(log_q, log_p, FREE_NATS, DYNAMICS, REPRESENTATION)
        weight = valid.flatten().to(explained.dtype) / valid.sum()
        total = (weight * (explained + divergence)).sum() / self.heads.entries
        return Losses(total, (weight * (log_q.exp() * (log_q - log_p)).sum(dim=(1, 2))).sum().detach())

    def predict(
        self, state: torch.Tensor, action: torch.Tensor, belief: Belief | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Differentiable in the action. Instead of samples of the latent variables it takes their probabilities.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param belief: about the episodes. Default: none
        :return: mean and variance of ``s'``, ``(1, n, D)`` both
        """
        seen = self.encoder(self.standardizer(self._seen(state)))
        if belief is None:
            memory = state.new_zeros(len(state), self.gru_size)
            likeliest = self._log_p(self.posterior, memory, seen).argmax(dim=2)
            latent = functional.one_hot(likeliest, self.classes).to(state.dtype).flatten(1)
        else:
            memory, latent = (torch.as_tensor(part, device=state.device) for part in belief)
        memory = self.cell(self.mixer(torch.cat([latent, seen, action], dim=1)), memory)
        likely = self._log_p(self.prior, memory).exp().flatten(1)
        out = self._split(self.decoder(torch.cat([memory, likely], dim=1))[None])
        return self._describe(out, *self._behind(out.gate.clamp(0.0, 1.0), state, action))

    def _log_p(self, network: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        logits = network(torch.cat(inputs, dim=1))
        return log_unimix(logits.unflatten(1, (self.groups, self.classes)), self.unimix)

    def _seen(self, state: torch.Tensor) -> torch.Tensor:
        return state.index_copy(state.dim() - 1, self._shrunk, symlog(state[..., self._shrunk]))

    # In NumPy

    def initial(self, state: Floats) -> Belief:
        """
        :param state: of episodes of which nothing else is known, ``(n, D)``
        :return: the belief about them
        """
        memory = np.zeros((len(state), self.gru_size), dtype=np.float32)
        return Belief(memory, self._infer(memory, self._encode(state)))

    def follow(self, belief: Belief, state: Floats, action: Floats, successor: Floats) -> Belief:
        """
        :param belief: about the episodes, before the step
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param successor: ``s'``, as it turned out, ``(n, D)``
        :return: the belief after it
        """
        memory = self._advance(belief, state, action)
        return Belief(memory, self._infer(memory, self._encode(successor)))

    def imagine(self, belief: Belief, state: Floats, action: Floats, noise: Noise | None) -> tuple[Floats, Belief]:
        """
        :param belief: about the episodes
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param noise: what chance is drawn from; None for no chance
        :return: ``s'``, numbers clipped to their bounds, ``(n, D)``, and the belief after it
        """
        memory = self._advance(belief, state, action)
        log_p = self._prior(memory)
        if noise is not None:
            log_p = log_p + _gumbel(noise, log_p.shape)
        latent = self._code(log_p)
        out = self._distribution(self._decode(memory, latent))
        successor = self._draw(out, *self._fast_behind(out.gate, state, action), noise)
        columns, variables = np.array(self.shown, dtype=np.intp).reshape(-1, 2)[self.faithful.numpy()].T
        successor[:, columns] = successor[:, self.spec.observation_dim + variables]
        return successor, Belief(memory, latent)

    def sample(
        self,
        state: Floats,
        action: Floats,
        members: NDArray[np.intp],
        noise: Noise | None,
        belief: Belief | None = None,
    ) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: there is but one
        :param noise: what chance is drawn from; None for no chance
        :param belief: about the episodes. Default: none
        :return: ``s'``, ``(n, D)``
        """
        return self.imagine(self.initial(state) if belief is None else belief, state, action, noise)[0]

    def moments(self, state: Floats, action: Floats, belief: Belief | None = None) -> tuple[Floats, Floats]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param belief: about the episodes. Default: none
        :return: mean and variance of the mixture of all samples, ``(1, n, D)`` both
        """
        out = self._mixture(state, action, belief)
        mean, var = self._moments(out, *self._fast_behind(out.gate, state, action))
        centre = mean.mean(axis=0, keepdims=True)
        return centre, (var + np.square(mean - centre)).mean(axis=0, keepdims=True)

    def nll(self, state: Floats, action: Floats, target: Floats, belief: Belief | None = None) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: ``s'``, ``(n, D)``, or ``o'`` alone, ``(n, m)``
        :param belief: about the episodes. Default: none
        :return: its negative log-likelihood under the mixture of all samples, summed over entries, ``(n,)``. By
            Jensen's inequality it is a little too large on average
        """
        likelihood = self._log_likelihood(*self._about(state, action, target, belief))
        return math.log(self.samples) - np.logaddexp.reduce(likelihood, axis=0)

    def surprise(
        self, state: Floats, action: Floats, target: Floats, belief: Belief | None = None
    ) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: ``s'``, ``(n, D)``, or ``o'`` alone, ``(n, m)``
        :param belief: about the episodes. Default: none
        :return: what :meth:`~persist_sb3.models.prediction.PredictiveModel.white_nll` makes of it, ``(n,)``
        """
        return self.white_nll(*self._about(state, action, target, belief))

    def _about(
        self, state: Floats, action: Floats, target: Floats, belief: Belief | None
    ) -> tuple[FastDistribution, Floats, Floats, Units]:
        """
        :return: what is predicted of the target, the target, what the regression expects of its numbers, and what they
            are measured in
        """
        out = self._mixture(state, action, belief)
        expected, units = self._fast_behind(out.gate, state, action)
        if target.shape[1] == self.spec.observation_dim:
            numbers = slice(0, self._observed)
            out = out._replace(mean=out.mean[..., numbers], var=out.var[..., numbers])
            expected, units = expected[..., numbers], Units(*(unit[:, numbers] for unit in units))
        return out, target, expected, units

    def _mixture(self, state: Floats, action: Floats, belief: Belief | None) -> FastDistribution:
        """
        :return: what each sample of the latent variables predicts, ``(samples, n, ...)``. They are drawn by a hash of
            the row, so that a prediction is a function of what it is made from
        """
        belief = self.initial(state) if belief is None else belief
        noise = Draws.split(hash_rows(np.concatenate([belief.memory, state, action], axis=1)), self.samples)
        memory = self._advance(belief, state, action)
        log_p = np.repeat(self._prior(memory), self.samples, axis=0)
        latent = self._code(log_p + _gumbel(noise, log_p.shape))
        outputs = self._decode(np.repeat(memory, self.samples, axis=0), latent)
        return self._distribution(outputs.reshape(len(state), self.samples, -1).swapaxes(0, 1))

    def _encode(self, state: Floats) -> Floats:
        seen = state.copy()
        numbers = seen[:, self._unbounded]
        seen[:, self._unbounded] = np.sign(numbers) * np.log1p(np.abs(numbers))
        return self.encoder.fast(self._fast_standardizer(seen))

    def _advance(self, belief: Belief, state: Floats, action: Floats) -> Floats:
        mixed = self.mixer.fast(np.concatenate([belief.latent, self._encode(state), action], axis=1))
        return fast_gru(self.cell, mixed, belief.memory)

    def _infer(self, memory: Floats, seen: Floats) -> Floats:
        """
        :return: the likeliest code, which unimix does not change
        """
        return self._code(_fast(self.posterior, np.concatenate([memory, seen], axis=1)))

    def _prior(self, memory: Floats) -> Floats:
        logits = _fast(self.prior, memory).reshape(-1, self.groups, self.classes)
        p = np.exp(logits - logits.max(axis=2, keepdims=True))
        p *= (1.0 - self.unimix) / p.sum(axis=2, keepdims=True)
        log_p: Floats = np.log(np.maximum(p + self.unimix / self.classes, np.finfo(np.float32).tiny))
        return log_p.reshape(len(memory), -1)

    def _code(self, scores: Floats) -> Floats:
        """
        :param scores: ``(n, groups * classes)``
        :return: one-hot codes of the greatest of each group, of the same shape
        """
        best = scores.reshape(-1, self.groups, self.classes).argmax(axis=2)
        return np.eye(self.classes, dtype=np.float32)[best].reshape(scores.shape)

    def _decode(self, memory: Floats, latent: Floats) -> Floats:
        return _fast(self.decoder, np.concatenate([memory, latent], axis=1))


class LatentFilter:
    """
    Keeps the belief about the running episode of each of ``n`` environments.

    :param model: what it believes with. Trained on meanwhile, it goes on with the memory that it has
    :param num_envs: how many environments, ``n``
    """

    def __init__(self, model: LatentModel, num_envs: int) -> None:
        self._model = model
        self.belief = model.initial(np.zeros((num_envs, model.spec.state_dim), dtype=np.float32))

    def begin(self, slots: NDArray[np.intp], state: Floats) -> None:
        """
        New episodes begin.

        :param slots: where, ``(k,)``
        :param state: what is seen there, ``(k, D)``
        """
        for mine, new in zip(self.belief, self._model.initial(state), strict=True):
            mine[slots] = new

    def follow(self, state: Floats, action: Floats, successor: Floats) -> None:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param successor: the true one, ``(n, D)``
        """
        self.belief = self._model.follow(self.belief, state, action, successor)


def _fast(network: nn.Sequential, x: Floats) -> Floats:
    block, affine = network
    assert isinstance(block, Block) and isinstance(affine, nn.Linear)
    return fast_linear(affine, block.fast(x))


def _gumbel(noise: Noise, size: tuple[int, ...]) -> Floats:
    uniform = np.maximum(noise.random(size, np.float32), np.finfo(np.float32).tiny)
    gumbel: Floats = -np.log(-np.log(uniform))
    return gumbel
