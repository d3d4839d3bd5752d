#!/usr/bin/env bash
# Sets up .venv and runs the whole path on a small data set it makes itself: pre-train 2D networks,
# inflate them, train BN and GN video networks, run the 10-clip test. Arguments go to the command.
source "$(dirname "$0")/setup.sh" "" # no extras, whatever the arguments
exec .venv/bin/videogn quickstart "$@"
