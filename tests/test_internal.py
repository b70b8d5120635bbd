"""Where internal variables come from: paths into infos and observations, and simulated variables."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from persist_sb3.infos import Infos, ListInfos, MissingInfoError, SameStepInfos, VectorInfos
from persist_sb3.internal import InternalSource, SimulatedVariable, SourceError
from persist_sb3.paths import PathSyntaxError, parse_path, write_path

N = 3
EVERYONE = np.arange(N)
LIVE = np.ones(N, dtype=bool)
NO_ACTION, NO_REWARD = np.zeros(N, dtype=np.int64), np.zeros(N)
BOX = spaces.Box(-1, 1, (4,))
NOTHING = ListInfos([{} for _ in range(N)])


def attached(
    source: Any, space: spaces.Space[Any] = BOX, action_space: spaces.Space[Any] | None = None
) -> InternalSource:
    internal = InternalSource(["x"], {"x": source})
    internal.attach(N, space, action_space or spaces.Discrete(2))
    return internal


@pytest.mark.parametrize(
    ("text", "root", "path"),
    [
        ("info.energy", "info", ("energy",)),
        ("info.internal[0]", "info", ("internal", 0)),
        ("info['odd key']", "info", ("odd key",)),
        ('info["it\'s"].a', "info", ("it's", "a")),
        ("info.body.battery[2][10]", "info", ("body", "battery", 2, 10)),
        ("info.obs.info", "info", ("obs", "info")),
        ("obs", "obs", ()),
        ("obs[2]", "obs", (2,)),
        ("obs.battery", "obs", ("battery",)),
        ("obs[1][0]", "obs", (1, 0)),
        (" obs . battery [ 1 ] ", "obs", ("battery", 1)),
    ],
)
def test_paths_are_read(text: str, root: str, path: tuple[str | int, ...]) -> None:
    assert parse_path(text) == (root, path)
    assert parse_path(write_path(root, path)) == (root, path)


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 0, "expected 'info' or 'obs', as in 'info.battery', found the end"),
        ("energy", 0, "expected 'info' or 'obs', as in 'info.battery', found 'energy'"),
        ("inf.energy", 0, "expected 'info' or 'obs', as in 'info.battery', found 'inf'"),
        ("info", 4, "expected '.key': an info has many entries, found the end"),
        ("info.", 5, "expected a key, found the end"),
        ("info..energy", 5, "expected a key, found '.'"),
        ("info.2", 5, "expected a key, found '2'"),
        ("info.odd key", 9, "expected '.key', '[index]' or the end, found 'key'"),
        ("obs[2", 5, "expected ']', found the end"),
        ("obs[]", 4, "expected an index (from 0) or a quoted key, found ']'"),
        ("obs[battery]", 4, "expected an index (from 0) or a quoted key, found 'battery'"),
        ("obs[-1]", 4, "unexpected character '-'"),
        ("obs[1.5]", 5, "expected ']', found '.'"),
        ("obs['battery]", 4, 'unexpected character "\'"'),
        ("obs[0:2]", 5, "unexpected character ':'"),
    ],
)
def test_a_malformed_path_has_a_caret_under_the_character(text: str, column: int, problem: str) -> None:
    with pytest.raises(PathSyntaxError) as caught:
        InternalSource(["x"], {"x": text})
    assert str(caught.value) == f"malformed source: {problem}\n    {text}\n    {' ' * column}^"
    assert caught.value.column == column


DICT = spaces.Dict(battery=spaces.Box(0, 1, (2,)), fuel=spaces.Box(0, 1, (1,)), deep=spaces.Dict(a=spaces.Discrete(3)))
TUPLE = spaces.Tuple((spaces.Discrete(4), spaces.Box(0, 1, (2, 3))))
ROWS = np.arange(24.0).reshape(N, 8)


@pytest.mark.parametrize(
    ("text", "space", "observation", "expected", "entry"),
    [
        ("obs[2]", BOX, ROWS[:, :4], ROWS[:, 2], "obs[2]"),
        ("obs[1][2]", spaces.Box(0, 1, (2, 3)), ROWS[:, :6].reshape(N, 2, 3), ROWS[:, 5], "obs[1][2]"),
        ("obs", spaces.Box(0, 1, ()), ROWS[:, 0], ROWS[:, 0], "obs"),
        ("obs", spaces.Box(0, 1, (1,)), ROWS[:, :1], ROWS[:, 0], "obs[0]"),
        ("obs", spaces.Discrete(9), np.array([3, 0, 8]), [3, 0, 8], "obs"),
        ("obs[1]", spaces.MultiDiscrete([3, 4]), np.array([[0, 1], [2, 3], [1, 2]]), [1, 3, 2], "obs[1]"),
        ("obs[0]", spaces.MultiBinary(2), np.array([[0, 1], [1, 0], [1, 1]]), [0, 1, 1], "obs[0]"),
        (
            "obs[1][0]",
            spaces.MultiBinary([2, 1]),
            np.array([[[0], [1]], [[1], [0]], [[1], [1]]]),
            [1, 0, 1],
            "obs[1][0]",
        ),
        ("obs.battery[1]", DICT, {"battery": ROWS[:, :2]}, ROWS[:, 1], "obs.battery[1]"),
        ("obs['battery'][0]", DICT, {"battery": ROWS[:, :2]}, ROWS[:, 0], "obs.battery[0]"),
        ("obs.fuel", DICT, {"fuel": ROWS[:, :1]}, ROWS[:, 0], "obs.fuel[0]"),
        ("obs.deep.a", DICT, {"deep": {"a": np.array([2, 0, 1])}}, [2, 0, 1], "obs.deep.a"),
        ("obs[0]", TUPLE, (np.array([3, 1, 0]), None), [3, 1, 0], "obs[0]"),
        ("obs[1][0][2]", TUPLE, (None, ROWS[:, :6].reshape(N, 2, 3)), ROWS[:, 2], "obs[1][0][2]"),
    ],
)
def test_observation_entries_are_read(
    text: str, space: spaces.Space[Any], observation: Any, expected: Any, entry: str
) -> None:
    source = attached(text, space)
    assert source.entries == {"x": entry}
    x = source.step(observation, NO_ACTION, NO_REWARD, NOTHING, LIVE)
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, np.reshape(expected, (N, 1)))
    slots = np.array([2, 0])
    np.testing.assert_array_equal(source.begin(slots, observation, NOTHING), x[slots])


@pytest.mark.parametrize(
    ("text", "space", "message"),
    [
        ("obs[4]", BOX, r"'obs\[4\]' does not exist: obs has shape \(4,\), its last entry is obs\[3\]"),
        ("obs", BOX, r"'obs' is not one number: obs has shape \(4,\), so name an entry up to obs\[3\]"),
        ("obs[0][0]", BOX, r"'obs\[0\]\[0\]' is not one number: obs has shape \(4,\)"),
        ("obs.battery", BOX, r"'obs.battery' does not exist: obs has shape \(4,\)"),
        ("obs[0]", spaces.Box(0, 1, (2, 3)), r"obs has shape \(2, 3\), so name an entry up to obs\[1\]\[2\]"),
        ("obs[0][3]", spaces.Box(0, 1, (2, 3)), r"'obs\[0\]\[3\]' does not exist"),
        ("obs[0]", spaces.Discrete(3), r"'obs\[0\]' is not one number: obs has shape \(\); write obs"),
        ("obs[2]", spaces.MultiBinary(2), r"'obs\[2\]' does not exist"),
        ("obs[2]", spaces.MultiDiscrete([3, 3]), r"'obs\[2\]' does not exist"),
        (
            "obs.batery[0]",
            DICT,
            r"obs has no 'batery' \(did you mean 'battery'\?\); it has obs.battery, obs.fuel, obs.deep",
        ),
        ("obs[0]", DICT, "'obs\\[0\\]': obs has no 0; it has obs.battery"),
        ("obs", DICT, "'obs' is a Dict, not a number: name one of obs.battery"),
        ("obs.deep", DICT, "'obs.deep' is a Dict, not a number: name one of obs.deep.a"),
        ("obs.deep.b", DICT, "'obs.deep.b': obs.deep has no 'b'; it has obs.deep.a"),
        ("obs[2]", TUPLE, r"'obs\[2\]': obs has no 2; it has obs\[0\], obs\[1\]"),
        ("obs", TUPLE, r"'obs' is a Tuple, not a number: name one of obs\[0\], obs\[1\]"),
        ("obs", spaces.Text(5), "'obs' is a Text, which holds no number"),
    ],
)
def test_an_entry_that_the_observation_lacks_is_refused_at_once(
    text: str, space: spaces.Space[Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        attached(text, space)


def both(**entries: Any) -> list[Infos]:
    """The same infos as SB3 and as gymnasium.vector give them."""

    def row(value: Any, i: int) -> Any:
        return {k: row(v, i) for k, v in value.items()} if isinstance(value, Mapping) else value[i]

    def masked(level: Mapping[str, Any]) -> dict[str, Any]:
        masks = {f"_{key}": np.ones(N, dtype=bool) for key in level}
        return {**{key: masked(v) if isinstance(v, Mapping) else v for key, v in level.items()}, **masks}

    return [ListInfos([row(entries, i) for i in range(N)]), VectorInfos(masked(entries), N)]


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize(
    ("text", "column"),
    [("info.energy", 0), ("info.body[1]", 2), ("info.nested.heat", 3), ("info['odd key']", 4)],
)
def test_info_entries_are_read(form: int, text: str, column: int) -> None:
    infos = both(
        energy=ROWS[:, 0], body=ROWS[:, 1:3], nested={"heat": ROWS[:, 3]}, **{"odd key": ROWS[:, 4].astype(np.float32)}
    )[form]
    source = attached(text)
    assert source.entries == {}
    np.testing.assert_array_equal(source.step(None, NO_ACTION, NO_REWARD, infos, LIVE), ROWS[:, column : column + 1])
    np.testing.assert_array_equal(source.begin(np.array([1]), None, infos), ROWS[1:2, column : column + 1])


@pytest.mark.parametrize("form", [0, 1])
def test_without_sources_x_is_the_vector_or_dict_called_internal(form: int) -> None:
    for entries in ({"internal": ROWS[:, :2]}, {"internal": {"heat": ROWS[:, 1], "energy": ROWS[:, 0]}}):
        infos = both(**entries)[form]
        source = InternalSource(["energy", "heat"])
        source.attach(N, BOX, spaces.Discrete(2))
        np.testing.assert_array_equal(source.begin(np.array([2, 0]), None, infos), ROWS[[2, 0], :2])
        np.testing.assert_array_equal(source.step(None, NO_ACTION, NO_REWARD, infos, LIVE), ROWS[:, :2])


@pytest.mark.parametrize("ended", [[1], [0, 1, 2]])
def test_where_an_episode_ended_its_last_info_is_read(ended: list[int]) -> None:
    mask = np.isin(EVERYONE, ended)
    last = {"internal": {"x": np.full(N, -1.0), "_x": mask}, "_internal": mask}
    running = np.full(N, 2.0)
    infos = SameStepInfos({"internal": {"x": running}, "final_info": last}, mask)
    source = InternalSource(["x"])
    source.attach(N, BOX, spaces.Discrete(2))
    x = source.step(None, NO_ACTION, NO_REWARD, infos, LIVE)
    np.testing.assert_array_equal(x[:, 0], np.where(mask, -1.0, 2.0))


@pytest.mark.parametrize("form", [0, 1])
def test_without_sources_the_vector_must_fit(form: int) -> None:
    source = InternalSource(["energy", "heat"])
    source.attach(N, BOX, spaces.Discrete(2))
    with pytest.raises(SourceError, match=r"info\['internal'\] has shape \(3,\), but there are 2 internal variables"):
        source.begin(EVERYONE, None, both(internal=ROWS[:, :3])[form])


@pytest.mark.parametrize("sources", [None, {"x": "info.internal"}])
def test_a_missing_key_names_the_environment_and_what_is_there(sources: Any) -> None:
    source = InternalSource(["x"], sources)
    source.attach(N, BOX, spaces.Discrete(2))
    listed = ListInfos([{"internal": 1.0}, {"lives": 3}, {"internal": 1.0}])
    with pytest.raises(
        MissingInfoError, match=r"info\['internal'\] is missing in environment 1; its info has \['lives'\]"
    ):
        source.begin(EVERYONE, None, listed)
    vector = VectorInfos({"internal": np.ones(N), "_internal": np.array([True, False, True])}, N)
    with pytest.raises(MissingInfoError, match=r"info\['internal'\] is missing in environment 1"):
        source.begin(EVERYONE, None, vector)


@pytest.mark.parametrize("form", [0, 1])
def test_an_entry_that_is_not_one_number_is_refused(form: int) -> None:
    infos = both(body=ROWS[:, :2], name=np.array(["a", "b", "c"], dtype=object))[form]
    with pytest.raises(
        SourceError, match=r"'info.body' is not one number but has shape \(2,\): .* such as info.body\[0\]"
    ):
        attached("info.body").begin(EVERYONE, None, infos)
    with pytest.raises(SourceError, match=r"'info\.name' cannot be read as numbers"):
        attached("info.name").begin(EVERYONE, None, infos)


def test_sources_can_be_mixed_and_each_call_gives_a_new_array() -> None:
    source = InternalSource(
        ["energy", "heat", "battery"],
        {"heat": "obs[1]", "battery": {"initial": 0.5, "drain": 0.125}, "energy": "info.energy"},
    )
    source.attach(N, BOX, spaces.Discrete(2))
    assert source.entries == {"heat": "obs[1]"}
    infos = both(energy=ROWS[:, 0])[0]
    first = source.begin(EVERYONE, ROWS[:, :4], infos)
    np.testing.assert_array_equal(first, np.column_stack([ROWS[:, 0], ROWS[:, 1], np.full(N, 0.5)]))
    second = source.step(ROWS[:, :4], NO_ACTION, NO_REWARD, infos, LIVE)
    np.testing.assert_array_equal(second[:, 2], np.full(N, 0.375))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first[:, 2], np.full(N, 0.5))


def test_a_simulated_variable_drains_pays_and_gains() -> None:
    variable = SimulatedVariable(0.5, drain=0.1, action_cost=[0.0, 0.2, 0.4], reward_gain=0.05, low=0.0, high=0.8)
    source = attached(variable, action_space=spaces.Discrete(3, start=1))
    np.testing.assert_array_equal(source.begin(EVERYONE, None, NOTHING), np.full((N, 1), 0.5))
    x = source.step(None, np.array([1, 2, 3]), np.array([0.0, 1.0, 2.0]), NOTHING, LIVE)
    np.testing.assert_allclose(x[:, 0], [0.4, 0.25, 0.1], rtol=1e-12)
    x = source.step(None, np.array([1, 3, 3]), np.array([100.0, 1.0, 0.0]), NOTHING, LIVE)
    np.testing.assert_allclose(x[:, 0], [0.8, 0.0, 0.0], rtol=0, atol=1e-12)


def test_box_actions_cost_their_magnitude() -> None:
    variable = SimulatedVariable(1.0, action_cost=0.1)
    source = attached(variable, action_space=spaces.Box(-1, 1, (2, 1), np.float32))
    actions = np.array([[[1.0], [-1.0]], [[0.0], [0.5]], [[0.0], [0.0]]], dtype=np.float32)
    x = source.step(None, actions, NO_REWARD, NOTHING, LIVE)
    np.testing.assert_allclose(x[:, 0], [0.8, 0.95, 1.0], rtol=1e-12)


def test_episodes_begin_at_the_initial_value_only_where_they_begin() -> None:
    source = attached(SimulatedVariable(0.5, drain=0.125))
    source.begin(EVERYONE, None, NOTHING)
    source.step(None, NO_ACTION, NO_REWARD, NOTHING, LIVE)
    np.testing.assert_array_equal(source.begin(np.array([1]), None, NOTHING), [[0.5]])
    x = source.step(None, NO_ACTION, NO_REWARD, NOTHING, np.array([True, True, False]))
    np.testing.assert_array_equal(x[:, 0], [0.25, 0.375, 0.375])


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(-2, 2)), min_size=1, max_size=20),
    st.floats(-0.2, 0.2),
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    st.floats(-1, 1),
)
def test_simulation_agrees_with_its_formula(
    steps: list[tuple[int, float]], drain: float, cost: tuple[float, ...], gain: float
) -> None:
    source = attached(SimulatedVariable(0.25, drain, cost, gain, -0.5, 1.5), action_space=spaces.Discrete(3))
    source.begin(EVERYONE, None, NOTHING)
    expected = 0.25
    for action, reward in steps:
        expected = min(max(expected - drain - cost[action] + gain * reward, -0.5), 1.5)
        x = source.step(None, np.full(N, action), np.full(N, reward), NOTHING, LIVE)
        np.testing.assert_allclose(x, np.full((N, 1), expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cost", "space", "message"),
    [
        (
            [0.1, 0.2],
            spaces.Discrete(3),
            r"action_cost=\(0.1, 0.2\) of 'x': the actions are Discrete, so give a list of 3",
        ),
        (0.1, spaces.Discrete(3), r"action_cost=0.1 of 'x': .* give a list of 3 costs"),
        ([0.1, 0.2], spaces.Box(-1, 1, (2,)), r"action_cost=\(0.1, 0.2\) of 'x': the actions are Box"),
        ([0.1, 0.2], spaces.MultiDiscrete([2]), r"action_cost=\(0.1, 0.2\) of 'x': the actions are MultiDiscrete"),
        (0.1, spaces.MultiDiscrete([2]), "only Box actions one cost for their magnitude"),
    ],
)
def test_action_costs_must_fit_the_actions(cost: Any, space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        attached(SimulatedVariable(0.5, action_cost=cost), action_space=space)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2])])
def test_actions_of_any_space_may_be_free(space: spaces.Space[Any]) -> None:
    source = attached(SimulatedVariable(0.5, drain=0.25), action_space=space)
    actions = np.stack([space.sample() for _ in range(N)])
    np.testing.assert_array_equal(source.step(None, actions, NO_REWARD, NOTHING, LIVE), np.full((N, 1), 0.25))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"initial": math.nan}, "initial=nan of a simulated variable must be finite"),
        ({"initial": 0.5, "drain": math.inf}, "drain=inf of a simulated variable must be finite"),
        (
            {"initial": 0.5, "action_cost": [0.1, math.nan]},
            r"action_cost=\(0.1, nan\) of a simulated variable must be finite",
        ),
        ({"initial": 0.5, "low": 1.0}, "low=1.0 of a simulated variable must be below high=1.0"),
        ({"initial": 1.5}, r"initial=1.5 of a simulated variable must be in \[0.0, 1.0\]"),
        ({"initial": 0.5, "drian": 0.1}, r"no parameter 'drian' \(did you mean 'drain'\?\); there are initial, drain"),
        ({"drain": 0.1}, r"needs its initial value; got only \{'drain': 0.1\}"),
    ],
)
def test_bad_simulated_variables_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InternalSource(["x"], {"x": parameters})


@pytest.mark.parametrize(
    ("dims", "sources", "error", "message"),
    [
        (["energy"], {"energy": "info.a", "enrgy": "info.b"}, ValueError,
         r"sources: unknown internal variable 'enrgy' \(did you mean 'energy'\?\)"),
        (["energy", "heat"], {"energy": "info.a"}, ValueError, "sources: 'heat' has none; .* 'info.heat'"),
        (["energy"], {"energy": 3}, TypeError, "the source of 'energy' must be a path such as 'info.energy' .*, not 3"),
        (["energy", "energy"], None, ValueError, "dims names 'energy' twice"),
        ([], None, ValueError, "dims is empty"),
    ],
)  # fmt: skip
def test_bad_sources_are_named(dims: Any, sources: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InternalSource(dims, sources)
