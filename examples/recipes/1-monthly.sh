#!/usr/bin/env bash
# A monthly fine-tune of all weights, held back by EWC.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes

# The sidecar that holds the release, and how far off its diagonal is on the way the release came:
# interactions of weights are not in it.
clmerge fisher "$R/release/model" --base "$R/base" --data "$R/text/films.jsonl" --max-length 64 \
  --samples "${CLMERGE_SAMPLES:-$(quick 8 256)}" --force
# The plan says what it takes, and what is known to go wrong with such a config.
clmerge train "$R/monthly.toml" -o "$R/monthly" --dry-run
code=0
clmerge train "$R/monthly.toml" -o "$R/monthly" --force \
  --set task.0.steps="${CLMERGE_STEPS:-$(quick 2 100)}" \
  --set ewc.samples="${CLMERGE_SAMPLES:-$(quick 8 256)}" || code=$?
case $code in
  0) echo "the update is in $R/monthly/model" ;;
  10 | 11) echo "the gate took the update back: $R/monthly/model is the release" ;;
  *) exit "$code" ;;
esac
