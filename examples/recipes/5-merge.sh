#!/usr/bin/env bash
# Two models that were tuned apart, in one on demand: each weight nearer to whom it matters more.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes

# A second specialist of the same base; each run leaves its Fisher sidecar beside its model.
if [ -d "$R/tweets" ]; then
  clmerge train --resume "$R/tweets"
else
  clmerge train "$R/release.toml" -o "$R/tweets" \
    --set task.0.name=tweets --set task.0.data="$R/text/tweets.jsonl" \
    --set task.0.validation="$R/text/tweets-held-out.jsonl" \
    --set task.0.steps="${CLMERGE_STEPS:-$(quick 2 100)}" \
    --set ewc.samples="${CLMERGE_SAMPLES:-$(quick 8 256)}"
fi

clmerge fisher-merge "$R/release/model" "$R/tweets/model" -o "$R/merged" --force
# Averaging models that are far apart loses features: what did the films lose? 10 is a rejection.
clmerge gate "$R/merged" "$R/release/model" --data films="$R/text/films-held-out.jsonl" \
  --margin 0.05 || echo "not accepted: exit code $?"
