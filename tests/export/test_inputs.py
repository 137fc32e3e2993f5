"""Descriptions of inputs say what they mean or are refused; sizes to try reach every bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import UsageError
from bevel.exporting.inputs import (
    InputSpec,
    bounds_of,
    describe_example,
    example_sizes,
    merge_bounds,
    parse_input,
    trial_sizes,
)


@pytest.mark.parametrize(
    ("text", "spec", "bounds"),
    [
        ("1,3,224,224", InputSpec("x", (1, 3, 224, 224)), {}),
        ("", InputSpec("x", ()), {}),
        (":int64", InputSpec("x", (), "int64"), {}),
        ("1,seq[1:256]:int64", InputSpec("x", (1, "seq"), "int64"), {"seq": (1, 256)}),
        ("n, t[2:9] , t :float16[-1:1e1]", InputSpec("x", ("n", "t", "t"), "float16", -1.0, 10.0), {"t": (2, 9)}),
        ("1,seq:int64[mask]", InputSpec("x", (1, "seq"), "int64", mask=True), {}),
        ("4:bool", InputSpec("x", (4,), "bool"), {}),
    ],
)
def test_descriptions(text: str, spec: InputSpec, bounds: dict[str, tuple[int, int]]) -> None:
    assert parse_input("x", text) == (spec, bounds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,,3", "dimension ''"),
        ("1,-3", "dimension '-3'"),
        ("1,seq[1]", "seq"),
        ("1,seq[5:2]", "lower"),
        ("1,seq[0:2]", "1 <= lower"),
        ("1,seq[1:2],seq[1:3]", "give one pair"),
        ("1:int65", "int65"),
        ("1:", "type ''"),
        ("1:int64[2:2]", "no value"),
        ("1:int64[..:2]", "int64"),
        ("1:float32[1e:2]", "not a number"),
        ("1[", "dimension"),
        ("1]:int64", "dimension"),
    ],
)
def test_other_text_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=r"x|seq") as refused:
        parse_input("x", text)
    assert message in str(refused.value)


@settings(deadline=None, derandomize=True)
@given(st.text("01seq[]:,int64-. ", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec, bounds = parse_input("x", text)
    except UsageError:
        return
    assert set(bounds) <= set(spec.symbols)


def test_random_values_keep_to_their_range() -> None:
    rng = np.random.default_rng(0)
    sizes = {"seq": 100}
    ids = InputSpec("ids", (3, "seq"), "int64", 5, 8).draw(sizes, rng)
    assert ids.shape == (3, 100)
    assert ids.dtype == np.int64
    assert set(np.unique(ids)) == {5, 6, 7}
    reals = InputSpec("x", ("seq",), "float32", -2, -1).draw(sizes, rng)
    assert reals.dtype == np.float32
    assert -2 <= reals.min() < reals.max() <= -1
    assert set(np.unique(InputSpec("b", ("seq",), "bool").draw(sizes, rng))) == {False, True}


def test_masks_are_ones_then_zeros() -> None:
    rng = np.random.default_rng(0)
    mask = InputSpec("mask", (50, "seq"), "int64", mask=True).draw({"seq": 9}, rng)
    assert (mask[:, 0] == 1).all()
    assert (np.diff(mask, axis=1) <= 0).all()
    assert len(np.unique(mask.sum(1))) > 5


def test_examples_describe_themselves() -> None:
    spec = describe_example("ids", np.asarray([[3, 7]], np.int64))
    assert spec == InputSpec("ids", (1, 2), "int64", 3, 8)
    assert describe_example("x", np.zeros((2, 2), np.float32)) == InputSpec("x", (2, 2))
    for wrong in (np.asarray(["a"]), np.zeros((0, 3), np.float32), np.zeros(3, np.complex64)):
        with pytest.raises(UsageError, match="expected numbers"):
            describe_example("x", wrong)


def test_every_dimension_needs_bounds_and_no_other() -> None:
    specs = [parse_input("a", "n[1:4],t")[0], parse_input("b", "t,n")[0]]
    assert list(bounds_of(specs, {"t": (1, 9), "n": (1, 4)})) == ["n", "t"]
    with pytest.raises(UsageError, match="'t' has no bounds"):
        bounds_of(specs, {"n": (1, 4)})
    with pytest.raises(UsageError, match="'w'"):
        bounds_of(specs, {"n": (1, 4), "t": (1, 9), "w": (1, 2)})
    with pytest.raises(UsageError, match="give one pair"):
        merge_bounds({"n": (1, 4)}, [{"n": (1, 5)}])


def test_trials_reach_every_bound_and_differ() -> None:
    bounds = {"n": (1, 8), "t": (3, 256)}
    trials = trial_sizes(bounds, np.random.default_rng(0))
    assert trials[0] == example_sizes(bounds)
    for corner in ({"n": 1, "t": 3}, {"n": 8, "t": 256}):
        assert corner in trials
    for name, ends in bounds.items():
        others = {n: e for n, e in example_sizes(bounds).items() if n != name}
        assert all({**others, name: end} in trials for end in ends)
    assert len({tuple(t.items()) for t in trials}) == len(trials)
    assert all(bounds[n][0] <= e <= bounds[n][1] for t in trials for n, e in t.items())


def test_examples_of_several_dimensions_differ_and_avoid_one() -> None:
    sizes = example_sizes({name: (1, 64) for name in "abcd"})
    assert len(set(sizes.values())) == 4
    assert min(sizes.values()) > 1
    assert example_sizes({"n": (1, 1)}) == {"n": 1}
