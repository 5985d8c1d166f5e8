#!/usr/bin/env bash
# Now and then the models of several updates become one: their average, or a moving average.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes

clmerge linear-merge "$R/release/model" "$R/monthly/model" "$R/weekly/model" -o "$R/average" --force
# A moving average takes one update at a time; a half-life of two updates.
clmerge ema-merge "$R/release/model" "$R/monthly/model" "$R/weekly/model" --half-life 2 \
  -o "$R/moving" --force
clmerge gate "$R/average" "$R/release/model" --data films="$R/text/films-held-out.jsonl" \
  --margin 0.05 || echo "not accepted: exit code $?"
