"""How much an agent can influence its future: the exact n-step empowerment of GridLife's tiles."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persist_sb3.envs.dynamics import ACTIONS, CONSTRAINTS, INTERNAL_NAMES, SETPOINT, GridLifeParams, tables
from persist_sb3.envs.interface import make_viability
from persist_sb3.envs.layout import generate
from persist_sb3.envs.oracle.model import Floats, Foresight, Ints
from persist_sb3.viability import ViabilitySet

#: The outcome of all action sequences that leave the viability set.
DEAD = -1
#: Digits after the decimal point to which internal variables, and rows of a channel, are told apart.
DIGITS = 10
#: The least probability of an input of a channel.
LEAST = 1e-300


def empowerment(params: GridLifeParams, n: int) -> Floats:
    """
    Influence on where the agent is: the capacity of the channel from action sequences to tiles,

    ``E_n(s) = max over p(a_1 ... a_n) of I(a_1 ... a_n; s_n | s)``

    (Klyubin, Polani & Nehaniv, 2005; Salge, Glackin & Polani, arXiv:1310.1863). Without slips it is ``log2`` of the
    number of tiles within reach. The grid has no walls inside, and nothing is deadly here.

    :param params: the world's parameters, of which size and slip matter
    :param n: length of the sequences, at least 1; there are ``5 ** n``
    :return: bits of each tile, ``(A,)``
    """
    # A tile's mirror images are as good as the tile itself: only those of one octant are looked at.
    row, col = np.divmod(np.arange(params.size**2), params.size)
    from_edge = np.sort(np.minimum([row, col], [params.size - 1 - row, params.size - 1 - col]), axis=0)
    octant, image = np.unique(from_edge[0] * params.size + from_edge[1], return_inverse=True)
    targets = tables(params).targets.T
    cell = octant[:, None]
    for _ in range(n):
        cell = targets[cell].reshape(len(octant), -1)
    return sequence_capacity(cell, params.slip)[image]


def viable_empowerment(
    params: GridLifeParams,
    layout_seed: int,
    x: ArrayLike,
    n: int,
    *,
    internal: bool = False,
    viability: ViabilitySet | None = None,
) -> Floats:
    """
    Influence on the future that one lives to see: as :func:`empowerment`, but all sequences that leave the viability
    set have the same outcome, death, from which nothing leads away. So it depends on what is around a tile.

    All food is there at first, and what is eaten does not come back within the ``n`` steps.

    :param params: the world's parameters
    :param layout_seed: the layout
    :param x: internal variables at first, ``(3,)``, on whichever tile
    :param n: length of the sequences, at least 1; there are ``5 ** n``
    :param internal: the outcome is not only where the agent is, but also its internal variables
    :param viability: the limits. Default: those GridLife has by default
    :return: bits of each tile, ``(A,)``
    :raises ValueError: if ``x`` is not of the shape ``(3,)``, or the world has seasons
    """
    start = np.asarray(x, dtype=np.float64)
    if start.shape != (len(INTERNAL_NAMES),):
        raise ValueError(f"x must hold {', '.join(INTERNAL_NAMES)}, but has the shape {start.shape}")
    viability = viability or make_viability(CONSTRAINTS, SETPOINT)
    layout = generate(params, np.array([layout_seed], dtype=np.uint64))
    foresight = Foresight(params, layout.heat, layout.hazard, layout.places)
    area = params.size**2
    cell, gone = np.arange(area)[None], np.zeros((1, area), dtype=np.int64)
    variables = np.broadcast_to(start[:, None, None], (len(start), 1, area))
    alive = viability.contains(variables.T)[:, 0]
    for _ in range(n):
        cell, variables, gone, _ = foresight.step(cell, variables, gone)
        alive = alive.repeat(len(ACTIONS)) & viability.contains(variables.T)[:, 0]
    outcome = cell[0]
    if internal:
        states = np.column_stack([outcome, variables[:, 0].T.round(DIGITS)])
        outcome = np.unique(states, axis=0, return_inverse=True)[1].ravel()
    return sequence_capacity(np.where(alive, outcome, DEAD).reshape(area, -1), params.slip)


def sequence_capacity(outcomes: Ints, slip: float) -> Floats:
    """
    Capacity of the channel from the sequence that an agent chooses to the outcome of the one that is carried out. Each
    action is by itself replaced by one drawn uniformly from all with probability ``slip``.

    :param outcomes: what each sequence leads to from each of ``k`` states, the last action counting fastest,
        ``(k, 5 ** n)``; equal numbers are equal outcomes
    :param slip: in ``[0, 1]``
    :return: bits, ``(k,)``
    """
    if slip == 0.0:
        ordered = np.sort(outcomes, axis=1)
        return np.log2(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1))
    return np.array([blahut_arimoto(_channel(outcome, slip))[0] for outcome in outcomes])


def _channel(outcome: Ints, slip: float) -> Floats:
    """
    The channel from sequences to outcomes, ``(sequences, outcomes)``. Each action slips by itself, so the sequences
    that may be carried out in place of the one chosen are mixed in one action at a time. Of equal rows, which add
    nothing to the capacity, one is kept.
    """
    kinds, which = np.unique(outcome, return_inverse=True)
    channel = np.eye(len(kinds))[which]
    stride = 1
    while stride < len(outcome):
        actions = channel.reshape(-1, len(ACTIONS), stride * len(kinds))
        channel = (1.0 - slip) * actions + slip * actions.mean(axis=1, keepdims=True)
        stride *= len(ACTIONS)
    rows: Floats = np.unique(channel.reshape(-1, len(kinds)).round(DIGITS), axis=0)
    return rows / rows.sum(axis=1, keepdims=True)


def blahut_arimoto(
    channel: NDArray[np.float64], tolerance: float = 1e-5, max_iterations: int = 1_000_000
) -> tuple[float, Floats]:
    """
    Capacity of a discrete memoryless channel (Blahut, 1972; Arimoto, 1972). Any source ``p`` encloses it,

    ``sum_k p_k d_k <= C <= max_k d_k`` with ``d_k = sum_j P_kj log2(P_kj / (p P)_j)``,

    and multiplying ``p_k`` by ``2 ** d_k`` (and normalising) makes it better. To get there sooner, ``d`` is multiplied
    by a step (Matz & Duhamel, 2004), which here doubles as long as the source gets better and falls back when it does
    not.

    :param channel: probability of each output given each input, ``(inputs, outputs)``
    :param tolerance: bits by which the bounds may differ in the end
    :param max_iterations: after which to give up
    :return: the lower bound in bits, and the source that achieves it, ``(inputs,)``
    :raises RuntimeError: if the bounds are not that close by then
    """
    channel = channel[:, channel.any(axis=0)]
    negentropy = np.sum(channel * np.log2(channel, where=channel > 0.0, out=np.zeros_like(channel)), axis=1)
    source, best, step = np.full(len(channel), 1.0 / len(channel)), -np.inf, 1.0
    trial = source
    for _ in range(max_iterations):
        divergence = negentropy - channel @ np.log2(trial @ channel)
        information = float(trial @ divergence)
        if divergence.max() - information <= tolerance:
            return information, trial
        if information >= best or step == 1.0:
            source, gain, best, step = trial, divergence - divergence.max(), information, 2.0 * step
        else:
            step = max(1.0, 0.25 * step)
        # An input that has been given up for too long a step can come back.
        trial = np.maximum(source * np.exp2(step * gain), LEAST)
        trial /= trial.sum()
    raise RuntimeError(f"the capacity is not known to {tolerance} bits after {max_iterations} iterations: allow more")
