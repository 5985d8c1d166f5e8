#!/usr/bin/env bash
# The model in production, once; every recipe starts from it.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes
cp examples/recipes/*.toml "$R"

[ -d "$R/release" ] || clmerge train "$R/release.toml" -o "$R/release" \
  --set task.0.steps="${CLMERGE_STEPS:-$(quick 2 100)}"
