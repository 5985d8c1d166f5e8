#!/usr/bin/env bash
# All recipes in order, each as it would be run by itself.
set -euo pipefail
cd "$(dirname "$0")"

for step in [0-9]-*.sh; do
  printf '\n--- %s (%s)\n' "$step" "$(sed -n '2s/^# //p' "$step")"
  bash "$step"
done
printf 'done in %d s\n' "$SECONDS"
