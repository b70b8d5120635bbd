"""The infos of a step as a list: what was published is read back, and what others write since is what counts."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from persist_sb3.infos import Infos, ListInfos, MissingInfoError, SameStepInfos, VectorInfos

EVERYONE = np.arange(3)


def test_a_published_vector_is_read_back_as_it_is_in_the_dicts() -> None:
    infos = ListInfos([{} for _ in range(3)])
    x = np.arange(6.0).reshape(3, 2)
    infos.publish("internal", EVERYONE, x)
    np.testing.assert_array_equal([info["internal"] for info in infos], x)
    np.testing.assert_array_equal(infos.column(("internal",), EVERYONE), x)
    np.testing.assert_array_equal(infos.column(("internal",), np.array([2])), x[2:])
    np.testing.assert_array_equal(infos.column(("internal", 1), EVERYONE), x[:, 1])


def test_what_others_write_since_is_what_is_read() -> None:
    infos = ListInfos([{} for _ in range(3)])
    infos.publish("internal", EVERYONE, np.zeros((3, 2)))
    infos[1]["internal"] = np.array([5.0, 6.0])
    infos[2]["internal"][0] = 7.0
    np.testing.assert_array_equal(infos.column(("internal",), EVERYONE), [[0.0, 0.0], [5.0, 6.0], [7.0, 0.0]])


def test_later_publications_to_some_count_too() -> None:
    infos = ListInfos([{} for _ in range(3)])
    infos.publish("internal", EVERYONE, np.zeros((3, 2)))
    infos.publish("internal", np.array([0, 2]), np.ones((2, 2)))
    np.testing.assert_array_equal(infos.column(("internal",), EVERYONE)[:, 0], [1.0, 0.0, 1.0])


def test_the_dicts_are_those_that_were_given_and_copies_are_plain_lists() -> None:
    given = [{"a": 1}, {"a": 2}]
    infos = ListInfos(given)
    infos.publish("internal", np.arange(2), np.ones((2, 2)))
    assert infos == given and all(mine is other for mine, other in zip(infos, given, strict=True))
    for copied in (copy.deepcopy(infos), pickle.loads(pickle.dumps(infos))):
        assert type(copied) is list
        assert [info["a"] for info in copied] == [1, 2]
        np.testing.assert_array_equal(copied[1]["internal"], [1.0, 1.0])


def as_list() -> Infos:
    return ListInfos([{} for _ in range(3)])


def as_arrays() -> Infos:
    return VectorInfos({}, 3)


def as_arrays_where_an_episode_ended() -> Infos:
    return SameStepInfos({}, np.array([False, True, False]))


@pytest.mark.parametrize("make", [as_list, as_arrays, as_arrays_where_an_episode_ended])
def test_several_entries_are_written_at_once_and_added_to_those_of_others(make: Callable[[], Infos]) -> None:
    infos = make()
    infos.publish("terms", EVERYONE, np.array([1.0, 2.0, 3.0]), "task")
    one, two = np.array([0.5, 0.25, -1.0]), np.array([4.0, 5.0, 6.0])
    infos.publish_entries(EVERYONE, [("terms", "bonus", one, False), ("persist", "score", two, False)])
    infos.publish_entries(EVERYONE, [("terms", "bonus", two, True), ("persist", "other", one, False)])
    for path, expected in (
        (("terms", "task"), [1.0, 2.0, 3.0]),
        (("terms", "bonus"), [4.5, 5.25, 5.0]),
        (("persist", "score"), two),
        (("persist", "other"), one),
    ):
        np.testing.assert_array_equal(infos.column(path, EVERYONE), expected)
    with pytest.raises(MissingInfoError, match=r"\['terms'\]\['none'\]"):
        infos.publish_entries(EVERYONE, [("terms", "none", one, True)])
