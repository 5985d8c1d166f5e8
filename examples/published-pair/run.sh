#!/usr/bin/env bash
# A published model and its published fine-tune, merged as they were released: torch pickles.
. "$(dirname "$0")/../settings.sh"
O=$D/published-pair
mkdir -p "$O"

PRETRAINED=$(python -m examples.fetch chgnet)/chgnet/pretrained
BASE=$PRETRAINED/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar
TUNED=$PRETRAINED/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar

clmerge linear-merge "$BASE" "$TUNED" -o "$O/merged.safetensors"
python examples/published-pair/check.py "$BASE" "$TUNED" "$O/merged.safetensors"
