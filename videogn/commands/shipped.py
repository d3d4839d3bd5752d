"""Where the configs are that come with the package."""

from pathlib import Path

from videogn.errors import ConfigError


def configs_folder() -> Path:
    """The folder of shipped configs: beside the package in a clone, inside it when installed."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_file(name: str) -> Path:
    """A config by its path, or by its place under the shipped ones without ``.yaml``.

    Raises:
        ConfigError: there is neither.
    """
    shipped = configs_folder() / f"{name}.yaml"
    path = Path(name) if Path(name).is_file() else shipped
    if not path.is_file():
        raise ConfigError(f"{name}: no such config, neither as a file nor as {shipped}")
    return path
