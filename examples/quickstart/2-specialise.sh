#!/usr/bin/env bash
# Two specialists from one base model: one reads the King James Bible, one reads German manuals.
. "$(dirname "$0")/../settings.sh"
STEPS=${CLMERGE_STEPS:-$(quick 1 20)}

python -m examples.finetune "$D/base" "$D/text/king-james/train.jsonl" "$D/king-james" --steps "$STEPS"
python -m examples.finetune "$D/base" "$D/text/german/train.jsonl" "$D/german" --steps "$STEPS"
