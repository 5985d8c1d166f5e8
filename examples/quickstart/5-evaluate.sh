#!/usr/bin/env bash
# What does each of the five models lose, on held-out rows of both texts?
. "$(dirname "$0")/../settings.sh"

python -m examples.evaluate "$D" \
  --text king-james="$D/text/king-james/held-out.jsonl" \
  --text german="$D/text/german/held-out.jsonl" \
  --model base="$D/base" \
  --model king-james="$D/king-james" \
  --model german="$D/german" \
  --model linear="$D/linear" \
  --model fisher="$D/fisher"
