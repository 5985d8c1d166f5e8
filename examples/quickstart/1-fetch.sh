#!/usr/bin/env bash
# A small language model and two texts that have little in common.
. "$(dirname "$0")/../settings.sh"

python -m examples.quickstart.smollm2 "$D/base"
python -m examples.quickstart.texts "$D/text" --held-out "${CLMERGE_ROWS:-$(quick 2 64)}"
