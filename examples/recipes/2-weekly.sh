#!/usr/bin/env bash
# A weekly fine-tune with rows of the past among the new ones, and EWC.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes

clmerge train "$R/weekly.toml" --continue "$R/release" -o "$R/weekly" --force \
  --set task.0.steps="${CLMERGE_STEPS:-$(quick 2 60)}" \
  --set ewc.samples="${CLMERGE_SAMPLES:-$(quick 8 256)}"
