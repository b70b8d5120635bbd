"""A model: a module that is trained beside the policy, rides in its zip, and can be rebuilt from there."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch

from persist_sb3.models.spec import StateSpec

ModelT = TypeVar("ModelT", bound="Model")

_EXTRA = torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX


class Model(torch.nn.Module):
    """
    Base of the trained parts that layers use. Its saved state says which class it is of, what it is about, and with
    which arguments it was made, so that a replay can rebuild it without the callback that trained it.

    :param spec: what it is about
    :param arguments: the other arguments of the subclass's constructor: None, bool, int, float, str, and lists and
        dicts of them
    """

    kinds: ClassVar[dict[str, type["Model"]]] = {}

    def __init__(self, spec: StateSpec, **arguments: Any) -> None:
        super().__init__()
        self.spec = spec
        self.arguments = arguments

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kinds[cls.__name__] = cls

    def get_extra_state(self) -> dict[str, Any]:
        """
        :return: what :func:`rebuild` needs
        """
        return {"kind": type(self).__name__, "spec": self.spec.fingerprint, "arguments": self.arguments}

    def set_extra_state(self, state: Any) -> None:
        """
        :param state: of the model whose state is being loaded
        :raises ValueError: if that was another kind of model, or about something else
        """
        own = self.get_extra_state()
        if state["kind"] != own["kind"]:
            raise ValueError(f"it was saved by a {state['kind']}, and this is a {own['kind']}")
        check_spec(state["spec"], self.spec)
        for name, value in own["arguments"].items():
            # What it was saved without did not exist yet, and so was off.
            saved = state["arguments"].get(name, False)
            if saved != value:
                raise ValueError(f"it was saved with {name}={saved!r}, and this has {value!r}")


def check_spec(saved: Mapping[str, Any], spec: StateSpec) -> None:
    """
    :param saved: fingerprint of the spec that a model was trained with
    :param spec: the one it is to be used with
    :raises ValueError: naming what differs
    """
    for key, value in spec.fingerprint.items():
        if saved[key] != value:
            raise ValueError(f"it was trained with {key} {saved[key]}, and here {key} is {value}")


def rebuild(saved: Mapping[str, Any], spec: StateSpec, kind: type[ModelT]) -> ModelT:
    """
    :param saved: a model's ``state_dict()``
    :param spec: what it is to be used with
    :param kind: class that the model must be of
    :return: the model, in evaluation mode
    :raises ValueError: if it is of another class, or was trained with another spec
    """
    about = saved[_EXTRA]
    found = Model.kinds.get(about["kind"])
    if found is None or not issubclass(found, kind):
        raise ValueError(f"a {about['kind']} was saved where a {kind.__name__} is needed")
    check_spec(about["spec"], spec)
    model = found(spec, **about["arguments"])
    model.load_state_dict(dict(saved))
    return model.eval()
