#!/usr/bin/env bash
# An adapter of today's rows, merged into the model only where the gate accepts it.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes

code=0
clmerge train "$R/daily.toml" -o "$R/today" --force \
  --set task.0.steps="${CLMERGE_STEPS:-$(quick 2 20)}" || code=$?
case $code in
  0) clmerge lora-merge "$R/release/model" "$R/today/adapter" -o "$R/served" --force
     echo "today's update is served: $R/served" ;;
  10) echo "today's update was rejected: yesterday's model stays" ;;
  11) echo "too few held-out rows to decide: yesterday's model stays" ;;
  *) exit "$code" ;;
esac
