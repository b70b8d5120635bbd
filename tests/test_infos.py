"""The infos of a step as a list: what was published is read back, and what others write since is what counts."""

import copy
import pickle

import numpy as np

from persist_sb3.infos import ListInfos

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
