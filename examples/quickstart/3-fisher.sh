#!/usr/bin/env bash
# How much does each weight matter to each specialist, on what it was trained for?
# Measured once and kept beside the weights, in $D/king-james/clmerge and $D/german/clmerge.
. "$(dirname "$0")/../settings.sh"
SAMPLES=${CLMERGE_SAMPLES:-$(quick 2 64)}

clmerge fisher "$D/king-james" --data "$D/text/king-james/train.jsonl" --samples "$SAMPLES"
clmerge fisher "$D/german" --data "$D/text/german/train.jsonl" --samples "$SAMPLES"
