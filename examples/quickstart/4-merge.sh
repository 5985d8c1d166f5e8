#!/usr/bin/env bash
# One model of both: by the plain average, and with each weight nearer to whom it matters more.
. "$(dirname "$0")/../settings.sh"

clmerge linear-merge "$D/king-james" "$D/german" -o "$D/linear"
clmerge fisher-merge "$D/king-james" "$D/german" -o "$D/fisher"
