"""Linear maps that commute with a finite group of symmetries: of an image they say the image of what they say."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persist_sb3.models.symmetry import signed_permutation
from persist_sb3.symmetry import Symmetry


class Group:
    """
    A finite group that acts on a vector and on what is chosen by signed permutations of their entries.

    :param symmetries: its elements; the identity need not be among them
    :param size: entries of the vector, ``D``
    :param choices: actions that can be counted, or entries of a Box action, ``A``
    :param counted: whether actions are counted
    :raises ValueError: if an element is no signed permutation, or the product of two is none of them
    """

    def __init__(self, symmetries: Sequence[Symmetry], size: int, choices: int, counted: bool) -> None:
        everything = [Symmetry(), *symmetries]
        state = [signed_permutation("columns", s.columns, "flip", s.flip, size) for s in everything]
        if counted and any(len(s.action_flip) for s in everything):
            raise ValueError("action_flip negates entries of Box actions, and these actions are counted: use action")
        action = [signed_permutation("action", s.action, "action_flip", s.action_flip, choices) for s in everything]
        if counted:
            # `Symmetry.action` tells the image of each action; entry `i` of an image of their logits is then that of
            # the action whose image is `i`.
            action = [(np.argsort(order), signs) for order, signs in action]
        #: Entry ``i`` of an image is entry ``columns[g, i]`` times ``signs[g, i]``, ``(g, D)`` both.
        self.columns, self.signs = (np.array(part) for part in zip(*state, strict=True))
        #: The same of what is chosen, ``(g, A)`` both.
        self.choice_columns, self.choice_signs = (np.array(part) for part in zip(*action, strict=True))
        self._find_products()

    def __len__(self) -> int:
        """Number of elements."""
        return len(self.columns)

    def of_both(self) -> "Group":
        """
        :return: the same group, acting on the vector followed by what is chosen, ``D + A`` entries, which is what a
            critic of Box actions sees
        """
        both = copy.copy(self)
        size = self.columns.shape[1]
        both.columns = np.concatenate([self.columns, size + self.choice_columns], axis=1)
        both.signs = np.concatenate([self.signs, self.choice_signs], axis=1)
        return both

    def _find_products(self) -> None:
        """Make the tables of products and inverses."""
        everything = self.of_both()
        both, signs = everything.columns, everything.signs
        known = {(order.tobytes(), sign.tobytes()): g for g, (order, sign) in enumerate(zip(both, signs, strict=True))}
        if len(known) < len(self):
            raise ValueError("the symmetries are not all different, or one of them is the identity: name each once")
        #: ``products[g, h]``: first ``h``, then ``g``.
        self.products = np.empty((len(self), len(self)), dtype=np.intp)
        for g in range(len(self)):
            for h in range(len(self)):
                product = known.get((both[h][both[g]].tobytes(), (signs[g] * signs[h][both[g]]).tobytes()))
                if product is None:
                    raise ValueError(
                        f"symmetry {h} and then symmetry {g} (the identity is 0) make none of the {len(self)} "
                        "symmetries: declare their products, too"
                    )
                self.products[g, h] = product
        self.inverses = (self.products == 0).argmax(axis=1)


class _Spread(torch.autograd.Function):
    """
    Copies of shared weights, one for each element of the group. Backward it gathers, which takes a fraction of the time
    of the scattering that autograd would do.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, columns: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """
        :param ctx: remembers ``back``
        :param weight: ``(..., w)``
        :param columns: ``(g, w)``, an order of ``0 ... w - 1`` in each row
        :param back: their inverses, ``(g, w)``
        :return: ``(..., g, w)``
        """
        ctx.save_for_backward(back)
        # Half of the time that indexing takes, or less.
        return weight.index_select(-1, columns.flatten()).unflatten(-1, columns.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """
        :param ctx: remembers ``back``
        :param grads: of the result, ``(..., g, w)``
        :return: of the weight, ``(..., w)``
        """
        (back,) = ctx.saved_tensors
        (grad,) = grads
        return torch.gather(grad, -1, back.expand(*grad.shape)).sum(dim=-2), None, None


class EquivariantLinear(nn.Module):
    """
    An affine map between spaces that the group acts on. Each output is one of a field of ``g`` outputs, one for each
    element of the group, which share their weights (Cohen & Welling, "Group equivariant convolutional networks", ICML
    2016); or, of the last layer, entries of what is chosen. A subclass says how the shared weights are spread.

    :param fan_in: inputs that an output sees
    :param shared: shape of the shared weights
    :param biases: number of shared biases
    :param gain: of the initial weights: that of an orthogonal matrix, whose rows have this length
    """

    def __init__(self, fan_in: int, shared: Sequence[int], biases: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shared) * (gain / math.sqrt(fan_in)))
        self.bias = nn.Parameter(torch.zeros(biases))
        self._kept: tuple[torch.Tensor, ...] | None = None

    def spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :return: weight and bias as of ``torch.nn.Linear``, ``(outputs, inputs)`` and ``(outputs,)``
        """
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}

    def _apply(self, *args: Any, **kwargs: Any) -> "EquivariantLinear":
        # It moves to another device, or to another type of numbers.
        self._kept = None
        moved: EquivariantLinear = super()._apply(*args, **kwargs)
        return moved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``(n, inputs)``
        :return: ``(n, outputs)``
        """
        if torch.is_grad_enabled():
            return nn.functional.linear(x, *self.spread())
        # Acting, one batch after the other meets the same weights. They are compared, and not their versions, which
        # fused optimisers leave as they are.
        kept = self._kept
        if kept is None or not (torch.equal(kept[0], self.weight) and torch.equal(kept[1], self.bias)):
            self._kept = kept = (self.weight.clone(), self.bias.clone(), *self.spread())
        return nn.functional.linear(x, *kept[2:])


class Lifting(EquivariantLinear):
    """
    From a vector to fields: output ``(c, g)`` is what weights ``c`` say of the image by the inverse of ``g``.

    :param group: acts on the vector
    :param fields: how many, ``k``; there are ``k * g`` outputs
    :param gain: see :class:`EquivariantLinear`
    """

    columns: torch.Tensor
    back: torch.Tensor
    signs: torch.Tensor

    def __init__(self, group: Group, fields: int, gain: float = math.sqrt(2.0)) -> None:
        size = group.columns.shape[1]
        super().__init__(size, (fields, size), fields, gain)
        _remember(self, columns=group.columns, back=np.argsort(group.columns, axis=1))
        self.register_buffer("signs", torch.as_tensor(group.signs, dtype=torch.float32), persistent=False)

    def spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = _spread(self.weight, self.columns, self.back) * self.signs
        return weight.flatten(0, 1), self.bias.repeat_interleave(len(self.signs))


class GroupConvolution(EquivariantLinear):
    """
    From fields to fields: output ``(c, g)`` sees input ``(d, u)`` through the weight of ``(c, d)`` and ``g^-1 u``.

    :param group: of the fields
    :param inputs: number of fields, ``k``
    :param fields: number of fields that come out
    :param gain: see :class:`EquivariantLinear`
    """

    columns: torch.Tensor
    back: torch.Tensor

    def __init__(self, group: Group, inputs: int, fields: int, gain: float = math.sqrt(2.0)) -> None:
        order = len(group)
        super().__init__(inputs * order, (fields, inputs, order), fields, gain)
        columns = group.products[group.inverses]
        _remember(self, columns=columns, back=np.argsort(columns, axis=1))

    def spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = _spread(self.weight, self.columns, self.back)
        return weight.transpose(1, 2).flatten(2).flatten(0, 1), self.bias.repeat_interleave(len(self.columns))


class ChoiceHead(EquivariantLinear):
    """
    From fields to what is chosen: the logits of actions that can be counted, or the entries of a Box action.

    :param group: acts on it
    :param inputs: number of fields, ``k``
    :param gain: see :class:`EquivariantLinear`
    :param signed: whether what comes out is negated with the entries of the action, as a mean is and a deviation is not
    """

    columns: torch.Tensor
    back: torch.Tensor
    signs: torch.Tensor

    def __init__(self, group: Group, inputs: int, gain: float, signed: bool = True) -> None:
        choices = group.choice_columns.shape[1]
        super().__init__(inputs * len(group), (inputs, choices), choices, gain)
        _remember(self, columns=group.choice_columns, back=np.argsort(group.choice_columns, axis=1))
        signs = group.choice_signs if signed else np.ones_like(group.choice_signs)
        self.register_buffer("signs", torch.as_tensor(signs, dtype=torch.float32), persistent=False)

    def spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = _spread(self.weight, self.columns, self.back) * self.signs
        bias = (self.bias[self.columns] * self.signs).mean(dim=0)
        return weight.flatten(0, 1).T, bias

    def even(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: positive numbers that belong to the entries, such as deviations, ``(A,)``
        :return: their mean over the entries that the group exchanges, ``(A,)``
        """
        return x[self.columns].mean(dim=0)


class InvariantHead(nn.Module):
    """
    From fields to numbers that the group does not change.

    :param group: of the fields
    :param inputs: number of fields
    :param outputs: how many
    """

    def __init__(self, group: Group, inputs: int, outputs: int = 1) -> None:
        super().__init__()
        self.order = len(group)
        self.affine = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``(n, k * g)``
        :return: ``(n, outputs)``
        """
        # The affine map of the fields' means, as one product: means over so few entries are slow.
        weight = self.affine.weight.repeat_interleave(self.order, dim=1) / self.order
        return nn.functional.linear(x, weight, self.affine.bias)


def _spread(weight: torch.Tensor, columns: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    copies: torch.Tensor = _Spread.apply(weight, columns, back)
    return copies


def _remember(module: nn.Module, **tables: NDArray[np.intp]) -> None:
    for name, table in tables.items():
        module.register_buffer(name, torch.as_tensor(table), persistent=False)


def equivariant_body(group: Group, widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """
    :param group: acts on the input
    :param widths: of the hidden layers, multiples of the group's order
    :param activation: between them; it acts on each entry alone
    :return: a network from a vector to fields
    :raises ValueError: if there are no layers, or a width is no multiple
    """
    order = len(group)
    wrong = [width for width in widths if width % order or width < order]
    if wrong or not widths:
        raise ValueError(
            f"net_arch={list(widths)}: with {order} symmetries, the identity among them, it takes at least one layer, "
            f"and each width must be a multiple of {order}"
        )
    fields = [width // order for width in widths]
    layers: list[nn.Module] = [Lifting(group, fields[0]), activation()]
    for before, after in pairwise(fields):
        layers += [GroupConvolution(group, before, after), activation()]
    return nn.Sequential(*layers)
