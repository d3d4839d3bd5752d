"""Imports go one way: errors, files, config, distributed -> data | models -> engine -> commands."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "videogn"

BASE = {
    "errors",
    "trying",
    "files",
    "config",
    "config_files",
    "distributed",
    "watchdog",
    "stopping",
}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "trying": {"errors"},
    "yaml_files": {"errors"},
    "config": set(),
    "config_files": {"config", "errors", "yaml_files"},
    "stopping": set(),
    "ranks": {"errors"},
    "parents": {"ranks"},
    "allocator": set(),
    "distributed": {"errors", "ranks"},
    "watchdog": {"errors", "ranks", "distributed"},
    "data": BASE | {"data"},
    "models": BASE | {"models"},
    "engine": BASE | {"data", "models", "engine"},
    "commands": BASE | {"data", "models", "engine", "commands", "parents", "ranks"},
    "cli": BASE | {"commands", "parents", "ranks", "allocator"},
    "__main__": {"cli"},
}


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "videogn":
                names = [f"videogn.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("videogn.")}
    return parts


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part != "__init__":
        assert imported_parts(path) <= ALLOWED[part]


def test_data_and_models_do_not_see_config() -> None:
    for folder in ("data", "models"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert not {"config", "config_files"} & imported_parts(path), path


def test_no_pickle_is_trusted() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("weights_only") == "True", path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads"), path
