import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.errors import WeightError
from videogn.models.spec import NetworkSpec, WeightInfo, class_names_sha256

SPEC = NetworkSpec("i3d_r50", "gn", 32, None, "nonlocal", 3, 64, (3, 4, 6, 3), 0.5)
INFO = WeightInfo(SPEC, ("a", "b", "c"), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), "r50.pth", "00", "mean")


@given(
    st.builds(
        replace,
        st.just(SPEC),
        arch=st.text(),
        num_groups=st.integers(1, 64),
        channels_per_group=st.none() | st.integers(1, 64),
        depths=st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
        dropout=st.floats(0, 0.99),
    ),
    st.none() | st.lists(st.text(), min_size=3, max_size=3).map(tuple),
)
def test_json_brings_back_an_equal_description(spec, class_names):
    info = replace(INFO, spec=spec, class_names=class_names)
    tree = json.loads(json.dumps(info.to_json()))
    assert WeightInfo.from_json(tree, "file") == info
    assert NetworkSpec.from_json(spec.to_json(), "file") == spec


def test_json_is_flat_under_the_names_of_the_format():
    tree = INFO.to_json()
    assert tree["architecture"] == "i3d_r50"
    assert tree["depths"] == [3, 4, 6, 3]
    assert set(tree) == {
        *("architecture", "norm", "num_groups", "channels_per_group", "layout", "num_classes"),
        *("width", "depths", "dropout", "class_names", "mean", "std"),
        *("source", "source_sha256", "temporal_init", "class_names_sha256"),
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("width", "64", "width: Input should be a valid integer"),
        ("width", 0, "width: Input should be greater than 0"),
        ("width", True, "width"),
        ("depths", [], "depths"),
        ("depths", [3, 4, 6, 3, 2, 1], "depths"),
        ("dropout", 1.0, "dropout"),
        ("mean", [0.5, 0.5], "mean"),
        ("mean", [0.5, 0.5, float("nan")], "mean"),
        ("std", [0.5, 0.5, 0.0], "std"),
        ("class_names", ["a", "b"], "2 class names for a network of 3 classes"),
        ("class_names", [1, 2, 3], "class_names"),
        ("norm", None, "norm"),
        ("colour", "red", "colour"),
    ],
)
def test_a_wrong_value_is_refused_by_name(key, value, message):
    with pytest.raises(WeightError, match=rf"FILE: .*{message}"):
        WeightInfo.from_json(INFO.to_json() | {key: value}, "FILE")


@pytest.mark.parametrize("key", sorted(set(INFO.to_json()) - {"class_names_sha256"}))
def test_a_missing_value_is_refused_by_name(key):
    tree = INFO.to_json()
    del tree[key]
    with pytest.raises(WeightError, match=key.replace("architecture", "arch")):
        WeightInfo.from_json(tree, "FILE")


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ({}, {"dropout": 0.0}, set()),
        ({}, {"num_groups": 16, "width": 32}, {"num_groups", "width"}),
        ({"norm": "bn"}, {"norm": "bn", "num_groups": 16, "channels_per_group": 2}, set()),
        ({"norm": "bn"}, {"norm": "gn", "num_groups": 16}, {"norm", "num_groups"}),
        ({"channels_per_group": 4}, {"channels_per_group": 4, "num_groups": 1}, set()),
        ({"channels_per_group": 4}, {}, {"channels_per_group"}),
        ({}, {"layout": "zoo"}, {"layout"}),
        ({"arch": "resnet50"}, {"arch": "resnet50", "layout": "zoo"}, set()),
        ({"arch": "resnet50"}, {"layout": "zoo"}, {"arch", "layout"}),
        ({}, {"num_classes": 4, "depths": (3, 4, 23, 3)}, {"num_classes", "depths"}),
    ],
)
def test_differences_are_those_the_weights_depend_on(first, second, fields):
    one, other = replace(SPEC, **first), replace(SPEC, **second)
    found = one.differences(other)
    assert set(found) == fields
    assert all(found[key] == (getattr(one, key), getattr(other, key)) for key in fields)


def test_the_hash_of_class_names_is_of_their_lines_and_is_checked():
    named = replace(INFO, spec=replace(INFO.spec, num_classes=2), class_names=("a b", "ö"))
    tree = named.to_json()
    expected = hashlib.sha256("a b\nö".encode()).hexdigest()
    assert tree["class_names_sha256"] == expected == class_names_sha256(("a b", "ö"))
    assert WeightInfo.from_json(tree, "FILE") == named
    # Files of before there was a hash are read; names in another order are not.
    assert WeightInfo.from_json(tree | {"class_names_sha256": None}, "FILE") == named
    del tree["class_names_sha256"]
    assert WeightInfo.from_json(tree, "FILE") == named
    with pytest.raises(WeightError, match="FILE: its class names are not those"):
        WeightInfo.from_json(named.to_json() | {"class_names": ["ö", "a b"]}, "FILE")
