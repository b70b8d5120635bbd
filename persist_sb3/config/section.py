"""What all sections of a configuration have in common."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Name of a layer or callback, and its parameters.
Entry = tuple[str, dict[str, Any]]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: Neither never nor always.
Probability = Annotated[float, Field(gt=0, lt=1)]
#: Of a whole, which it may be.
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of the sections: they do not change, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Where that is said which could be looked for here.
    elsewhere: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _name_nearest_key(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    nearest = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f", did you mean {nearest[0]!r}?" if nearest else "."
                    known = ", ".join(cls.model_fields)
                    raise ValueError(f"unknown key {key!r}{hint} Known here: {known}{cls.elsewhere}")
        elif not isinstance(data, cls):
            raise ValueError(
                f"must hold keys ({', '.join(cls.model_fields)}), or be {{}} for all defaults, not {data!r}"
            )
        return data


#: What pydantic says in terms of Python, in those of a file.
_SAID = {"tuple_type": "Input should be a list"}


def explain(problem: Mapping[str, Any]) -> str:
    """
    :param problem: as pydantic reports it
    :return: where it is and what it is, without pydantic's own address and a copy of the whole input
    """
    where = ".".join(map(str, problem["loc"]))
    said = _SAID.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
    ours = problem["type"] == "value_error"
    value = "" if ours or isinstance(problem["input"], dict) else f", not {problem['input']!r}"
    return f"{where}: {said}{value}" if where else f"{said}{value}"


def listed(value: Any) -> Any:
    """
    :param value: anything
    :return: the same, with lists in the place of tuples, as YAML has them
    """
    return [listed(item) for item in value] if isinstance(value, tuple) else value


def given(entry: Entry) -> Entry:
    """
    :param entry: some of whose parameters may be None
    :return: the same without these, which stay at their defaults
    """
    name, parameters = entry
    return name, {key: value for key, value in parameters.items() if value is not None}
