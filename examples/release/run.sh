#!/usr/bin/env bash
# A release: two specialists are merged, held to a policy and to what is in use, and published.
#
#   run.sh [models|fisher|merge|check|gate|publish ...]   these steps; default all, in this order
#
#   RELEASE_A, RELEASE_B                     the models; default: the quickstart's, made if need be
#   RELEASE_ROWS_A, RELEASE_ROWS_B           rows that they were trained on, for their Fishers
#   RELEASE_HELD_OUT_A, RELEASE_HELD_OUT_B   rows that they have not seen, for the gate
#   RELEASE_REFERENCE                        what is in use; default: the last release, if any
#   RELEASE_MARGIN, RELEASE_MIN_ROWS         of the gate; default: 0.02 nats per token, 500 rows
#   RELEASE_POLICY                           what counts as lossy; default: policy.toml beside this
#   RELEASE_TO                               folder of releases; default: demo/release
#   RELEASE_NAME                             of this one; default: the time
#
# Exit codes: 0 published; 10 lossy or worse, 11 too few rows to tell: nothing is published; 1 it
# failed.
. "$(dirname "$0")/../settings.sh"
A=${RELEASE_A:-$D/king-james}
B=${RELEASE_B:-$D/german}
ROWS_A=${RELEASE_ROWS_A:-$D/text/king-james/train.jsonl}
ROWS_B=${RELEASE_ROWS_B:-$D/text/german/train.jsonl}
HELD_OUT_A=${RELEASE_HELD_OUT_A:-$D/text/king-james/held-out.jsonl}
HELD_OUT_B=${RELEASE_HELD_OUT_B:-$D/text/german/held-out.jsonl}
POLICY=${RELEASE_POLICY:-examples/release/policy.toml}
TO=${RELEASE_TO:-$D/release}
NAME=${RELEASE_NAME:-$(date -u +%Y-%m-%d-%H%M%S)}
REFERENCE=${RELEASE_REFERENCE:-}
MARGIN=${RELEASE_MARGIN:-0.02}
MIN_ROWS=${RELEASE_MIN_ROWS:-$(quick 20 500)}
SAMPLES=${CLMERGE_SAMPLES:-$(quick 2 64)}
NEW=$TO/candidate

models() {
  if [ -z "${RELEASE_A:-}${RELEASE_B:-}" ]; then
    CLMERGE_ROWS=${CLMERGE_ROWS:-$(quick 20 500)} bash examples/quickstart/1-fetch.sh
    bash examples/quickstart/2-specialise.sh
  fi
}

fisher() {
  clmerge fisher "$A" --data "$ROWS_A" --samples "$SAMPLES"
  clmerge fisher "$B" --data "$ROWS_B" --samples "$SAMPLES"
}

merge() {
  mkdir -p "$TO"
  clmerge fisher-merge "$A" "$B" -o "$NEW" --force
}

check() {
  local baseline=() code=0
  if [ -f "$TO/baseline.json" ]; then baseline=(--baseline "$TO/baseline.json"); fi
  rm -f "$TO/checked.json"
  clmerge check "$NEW" "$A" "$B" --policy "$POLICY" ${baseline[@]+"${baseline[@]}"} \
    --junit "$TO/check.xml" --markdown "$TO/check.md" --json >"$TO/check.json" || code=$?
  case $code in
    0) cp "$NEW/clmerge/manifest.json" "$TO/checked.json" ;;
    10) echo "not released: the merge is lossy; $TO/check.md says where" >&2 ;;
    *) cat "$TO/check.json" >&2 ;;
  esac
  return "$code"
}

gate() {
  local against code=0
  if [ -z "$REFERENCE" ] && [ -e "$TO/latest" ]; then REFERENCE=$TO/latest; fi
  if [ -n "$REFERENCE" ]; then
    # Each kind of row for itself: a gain on one must not pay for a loss on the other.
    against=("$REFERENCE" --data "a=$HELD_OUT_A" --data "b=$HELD_OUT_B")
  else
    # The first: on the rows of both together it must be as good as either parent.
    against=("$A" --anchor "$B" --data "both=$HELD_OUT_A" --data "both=$HELD_OUT_B")
  fi
  rm -f "$TO/gated.json"
  clmerge gate "$NEW" "${against[@]}" --margin "$MARGIN" --min-rows "$MIN_ROWS" \
    --ledger "$TO/looks.json" --write-rows "$TO/gate.rows.jsonl" -o "$TO/gate.json" \
    --junit "$TO/gate.xml" --markdown "$TO/gate.md" || code=$?
  case $code in
    0) cp "$NEW/clmerge/manifest.json" "$TO/gated.json" ;;
    10) echo "not released: it is worse; $TO/gate.md says where" >&2 ;;
    11) echo "not released: too few rows to tell; $TO/gate.md says how many would do" >&2 ;;
  esac
  return "$code"
}

publish() {
  # What is published is what has passed, to the bit: the manifest names the weights it belongs to.
  local passed
  for passed in checked gated; do
    if ! cmp -s "$NEW/clmerge/manifest.json" "$TO/$passed.json"; then
      echo "error: $NEW has not been $passed" >&2
      return 1
    fi
  done
  clmerge verify "$NEW"
  if [ -e "$TO/$NAME" ]; then
    echo "error: $TO/$NAME exists" >&2
    return 1
  fi
  cp "$TO/check.json" "$NEW/clmerge/check.json"
  cp "$TO/gate.json" "$NEW/clmerge/verdict.json"
  mv "$NEW" "$TO/$NAME"
  ln -sfn "$NAME" "$TO/latest"
  cp "$TO/check.json" "$TO/.baseline.json"
  mv "$TO/.baseline.json" "$TO/baseline.json"
  echo "released $TO/$NAME"
}

for step in "${@:-models fisher merge check gate publish}"; do
  # shellcheck disable=SC2086  # the default is all of them in one word
  for one in $step; do
    case $one in
      models | fisher | merge | check | gate | publish) "$one" ;;
      *) echo "error: there is no step $one" >&2 && exit 2 ;;
    esac
  done
done
