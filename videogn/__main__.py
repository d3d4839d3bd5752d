"""``python -m videogn`` is the command ``videogn``."""

from videogn.cli import entry

if __name__ == "__main__":
    entry()
