"""``python -m videogn`` is the command ``videogn``."""

import sys

from videogn.cli import main

sys.exit(main())
