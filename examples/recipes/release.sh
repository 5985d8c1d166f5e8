#!/usr/bin/env bash
# The model in production, once; every recipe starts from it.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes
cp examples/recipes/*.toml "$R"

if [ -d "$R/release" ]; then
  clmerge train --resume "$R/release" # up to date, or on from where it was interrupted
else
  clmerge train "$R/release.toml" -o "$R/release" \
    --set task.0.steps="${CLMERGE_STEPS:-$(quick 2 100)}" \
    --set ewc.samples="${CLMERGE_SAMPLES:-$(quick 8 256)}"
fi
