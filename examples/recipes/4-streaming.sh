#!/usr/bin/env bash
# A stream in small steps: an averaged model, and an alarm when the stream changes.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes
STEPS=${CLMERGE_STEPS:-$(quick 15 30)}

# shellcheck disable=SC2046  # several options
clmerge train "$R/streaming.toml" -o "$R/streaming" --force \
  $(for hour in 0 1 2 3; do echo "--set task.$hour.steps=$STEPS"; done)
