import ast
import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from videogn.config import STILL_ARCHS, Config, ModelConfig
from videogn.config_files import differences, from_tree, leaf_keys, load_config, to_tree, to_yaml
from videogn.errors import ConfigError
from videogn.models.i3d import LAYOUTS
from videogn.models.norm import NORMS
from videogn.models.spec import ARCHITECTURES

REPOSITORY = Path(__file__).parents[1]
KINETICS = REPOSITORY / "configs" / "kinetics400"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    return path


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_empty_file_gives_the_defaults(empty: Path) -> None:
    loaded = load_config(empty)
    assert loaded.config == from_tree({"out": "runs/empty"}, "")
    assert loaded.explicit == frozenset()


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("data.num_workers=many", "data.num_workers: must be an integer or 'auto', got 'many'"),
        ("data.prefetch=0", "data.prefetch: must be greater than 0 or 'auto', got 0"),
        ("train.lr_milestones=[0.1,x]", "train.lr_milestones[1]: must be a number, got 'x'"),
    ],
)
def test_value_of_several_kinds_has_one_fault(word: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_config(str(file), [word])
    assert str(caught.value) == f"{file}: {fault}"


def test_override_beats_file_beats_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {base_lr: 0.1, iterations: 7}\nseed: 1\n")
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: base.yaml\ntrain: {base_lr: 0.2}\nseed: 2\n")
    loaded = load_config(child, ["seed=3"])
    assert loaded.config.train.iterations == 7
    assert loaded.config.train.base_lr == 0.2
    assert loaded.config.seed == 3
    assert loaded.explicit == {"train.base_lr", "seed"}


def test_base_of_a_base_is_read_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "top.yaml").write_text("seed: 5\n")
    (tmp_path / "a" / "mid.yaml").write_text("_BASE_: top.yaml\n")
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text("_BASE_: a/mid.yaml\n")
    assert load_config(leaf).config.seed == 5


def test_circle_of_bases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    assert "circle" in message_of(tmp_path / "a.yaml")


def test_two_parents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("_BASE_: [b.yaml, c.yaml]\n")
    assert "one parent" in message_of(path)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.norm=no", "quotes"),
        ("model.norm=3", "'in' or 'none', got 3"),
        ("model.norm=gnn", "did you mean 'gn'"),
        ("train.clips_per_gpu=8.0", "must be an integer, got 8.0"),
        ("train.clips_per_gpu='8'", "must be an integer, got '8'"),
        ("train.clips_per_gpu=true", "must be an integer, got True"),
        ("train.clips_per_gpu=0", "greater than 0"),
        ("train.base_lr='0.1'", "must be a number, got '0.1'"),
        ("train.base_lr=true", "must be a number, got True"),
        ("train.base_lr=.inf", "finite"),
        ("data.train=7", "must be a string, got 7"),
        ("data.mean=[0.4,0.4]", "data.mean[2]"),
        ("data=3", "must be a section of keys"),
        ("test.num_crops=2", "must be 1 or 3"),
        ("resume=always", "'auto' or 'never'"),
        ("train.base_lr", "key=value"),
        ("train.nrom=1", "no such key"),
        ("lr=0.1", "did you mean"),
        ("seed=9223372036854775808", "seed"),
        ("train.iterations=010", "must be an integer, got '010'"),
        ("model.depths=3", "must be a list"),
        ("clip.crop_size=300", "short_side_min"),
        ("clip.short_side_max=200", "short_side_max (200) is below"),
        ("train.warmup_iterations=400000", "must be below train.iterations"),
        ("train.lr_milestones=[0.7,0.3]", "must rise"),
        ("model.arch=resnet50", "clip.num_frames=1"),
        ("data.mean=[0.4,0.4,0.4]", "belong together"),
        ("seed={a: [}", "not a YAML value"),
    ],
)
def test_wrong_value_is_refused_with_its_key(empty: Path, word: str, expected: str) -> None:
    assert expected in message_of(empty, word)


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_a_switch_is_set_by_its_word_as_messages_tell_it(empty: Path, word: str) -> None:
    """YAML reads on and off as True and False."""
    loaded = load_config(empty, [f"compute.graphs={word}"])
    assert loaded.config.compute.graphs == word
    saved = empty.with_name("saved.yaml")
    saved.write_text(to_yaml(loaded.config))
    assert load_config(saved).config.compute.graphs == word


def test_integer_passes_for_a_float_and_exponents_are_floats(empty: Path) -> None:
    config = load_config(empty, ["train.base_lr=1", "train.weight_decay=1e-3"]).config
    assert config.train.base_lr == 1.0
    assert config.train.weight_decay == 1e-3


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {norm: gnn, nmu_groups: 3}\ntrian: {}\n")
    message = message_of(path, "seed=x", "train.iterations=1.5")
    for part in ("5 faults", "model.norm", "model.num_groups", "train", "seed", "iterations"):
        assert part in message


@pytest.mark.parametrize("key", [key for key in leaf_keys() if "." in key])
def test_misspelt_key_names_the_right_one(empty: Path, key: str) -> None:
    section, _, leaf = key.partition(".")
    swapped = leaf[:-2] + leaf[-1] + leaf[-2] if leaf[-1] != leaf[-2] else leaf + "x"
    assert key in message_of(empty, f"{section}.{swapped}=1")


def test_key_given_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    message = message_of(path)
    assert "twice" in message
    assert "line 2" in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- 1\n", b"a: [", b"1: 2\n"])
def test_unreadable_file_is_one_message(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert str(path) in message_of(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "absent.yaml" in message_of(tmp_path / "absent.yaml")


def test_yaml_round_trip(empty: Path) -> None:
    config = load_config(
        empty,
        ["model.depths=[1,2]", "data.mean=[0.1,0.2,0.3]", "data.std=[1,1,1]", "out=2026-01-01"],
    ).config
    path = empty.parent / "again.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path).config == config
    assert config.out == "2026-01-01"


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_every_float_survives_the_saved_config(value: float) -> None:
    config = from_tree({"train": {"base_lr": value}}, "")
    again = from_tree(yaml.safe_load(to_yaml(config)), "")
    assert math.isclose(again.train.base_lr, value, rel_tol=0)


def test_differences_names_changed_leaves() -> None:
    old = Config()
    new = from_tree({"train": {"base_lr": 0.5}, "seed": 1}, "")
    assert differences(old, new) == {"train.base_lr": (0.01, 0.5), "seed": (0, 1)}
    assert set(leaf_keys()) == set(_leaves(to_tree(old)))


def _leaves(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


TABLE_8 = {
    "bn_32x2_b8": (32, 2, 8, 0.01, 400_000, "73.3 / 90.7"),
    "bn_32x2_b4": (32, 2, 4, 0.005, 800_000, "72.1 / 90.0"),
    "bn_64x1_b4": (64, 1, 4, 0.005, 800_000, "73.3 / 90.8"),
    "gn_32x2_b8": (32, 2, 8, 0.01, 400_000, "73.0 / 90.6"),
    "gn_32x2_b4": (32, 2, 4, 0.005, 800_000, "72.8 / 90.6"),
    "gn_64x1_b4": (64, 1, 4, 0.005, 800_000, "74.5 / 91.7"),
}


@pytest.mark.parametrize("cell", TABLE_8)
def test_paper_cells(cell: str) -> None:
    frames, stride, clips, rate, iterations, number = TABLE_8[cell]
    path = KINETICS / f"i3d_r50_{cell}.yaml"
    config = load_config(path).config
    assert config.model.norm == cell[:2]
    assert (config.clip.num_frames, config.clip.frame_stride) == (frames, stride)
    assert config.train.clips_per_gpu == clips
    # At the paper's eight GPUs linear scaling leaves the learning rate as it stands.
    assert config.train.base_batch == 8 * clips
    assert config.train.base_lr == rate
    assert config.train.iterations == iterations
    assert number in path.read_text()


def test_every_shipped_config_is_valid() -> None:
    paths = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    assert len(paths) >= 9
    for path in paths:
        load_config(path)


SECTION_TYPES = {
    "DataConfig": "data",
    "ModelConfig": "model",
    "ClipConfig": "clip",
    "TrainConfig": "train",
    "TestConfig": "test",
    "ComputeConfig": "compute",
}


def test_every_field_is_read_somewhere() -> None:
    """An option that nothing reads is a lie: each must be read off its section in the package."""
    read: set[str] = set()
    for path in (REPOSITORY / "videogn").rglob("*.py"):
        if path.name != "config.py":
            read |= _config_reads(ast.parse(path.read_text()))
    assert set(leaf_keys()) - read == set()


def _config_reads(tree: ast.Module) -> set[str]:
    """Keys read as ``….section.field``, off a variable bound to a section, or off a config."""
    reads = set()
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]:
        names = _section_names(function)
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            if isinstance(owner, ast.Attribute) and owner.attr in SECTION_TYPES.values():
                reads.add(f"{owner.attr}.{node.attr}")
            if isinstance(owner, ast.Attribute) and owner.attr in ("recipe", "_recipe"):
                reads.add(f"train.{node.attr}")
            if isinstance(owner, ast.Name) and owner.id in names:
                reads.add(f"{names[owner.id]}.{node.attr}")
            if isinstance(owner, ast.Name) and owner.id == "config":
                reads.add(node.attr)
    return reads


def _section_names(function: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    """Local names of config sections: annotated parameters, and ``clip = config.clip``."""
    names = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name):
            section = SECTION_TYPES.get(node.annotation.id)
            if section:
                names[node.arg] = section
        if isinstance(node, ast.Assign):
            names |= _assigned_sections(node)
    return names


def _assigned_sections(node: ast.Assign) -> dict[str, str]:
    targets, values = node.targets[0], node.value
    pairs = (
        zip(targets.elts, values.elts, strict=True)
        if isinstance(targets, ast.Tuple)
        and isinstance(values, ast.Tuple)
        and not any(isinstance(part, ast.Starred) for part in (*targets.elts, *values.elts))
        else [(targets, values)]
    )
    sections = {section: section for section in SECTION_TYPES.values()} | {"recipe": "train"}
    return {
        target.id: sections[value.attr]
        for target, value in pairs
        if isinstance(target, ast.Name)
        and isinstance(value, ast.Attribute)
        and value.attr in sections
    }


def test_choices_are_the_tables_of_the_models() -> None:
    hints = get_type_hints(ModelConfig)
    assert get_args(hints["arch"]) == tuple(ARCHITECTURES)
    assert get_args(hints["norm"]) == tuple(NORMS)
    assert get_args(hints["layout"]) == tuple(LAYOUTS)
    still = {a for a, own in ARCHITECTURES.items() if own.family in ("resnet2d", "vgg2d")}
    assert set(STILL_ARCHS) == still


@pytest.mark.parametrize(
    ("word", "other"),
    [("train.iterations=9", "train.epochs"), ("train.val_interval=9", "train.val_epochs")],
)
def test_a_word_that_another_setting_overrules_is_refused(tmp_path, word, other) -> None:
    path = tmp_path / "epochs.yaml"
    path.write_text("train: {epochs: 100, val_epochs: 1, iterations: 50, warmup_iterations: 60}")
    assert f"set {other}=null to go by {word.partition('=')[0]}" in message_of(path, word)
    words = [word, f"{other}=null", "train.warmup_iterations=0"]
    assert load_config(path, words).config.train.epochs == (
        None if other == "train.epochs" else 100
    )
