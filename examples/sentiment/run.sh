#!/usr/bin/env bash
# Two classifiers from one start, film reviews and tweets, merged both ways.
. "$(dirname "$0")/../settings.sh"
S=$D/sentiment
STEPS=${CLMERGE_STEPS:-$(quick 1 100)}
SAMPLES=${CLMERGE_SAMPLES:-$(quick 4 256)}
TRAINING="--steps $STEPS --batch-size 32 --max-length 64 --every 25"

python -m examples.sentiment.minilm "$S/base"
python -m examples.sentiment.snippets "$S/text" --held-out "${CLMERGE_ROWS:-$(quick 8 800)}"

# shellcheck disable=SC2086  # several options in one variable
for domain in films tweets; do
  python -m examples.finetune "$S/base" "$S/text/$domain/train.jsonl" "$S/$domain" $TRAINING
  clmerge fisher "$S/$domain" --data "$S/text/$domain/train.jsonl" --samples "$SAMPLES"
done
clmerge linear-merge "$S/films" "$S/tweets" -o "$S/linear"
clmerge fisher-merge "$S/films" "$S/tweets" -o "$S/fisher"

python -m examples.evaluate "$S" --batch-size 50 \
  --text films="$S/text/films/held-out.jsonl" --text tweets="$S/text/tweets/held-out.jsonl" \
  --model base="$S/base" --model films="$S/films" --model tweets="$S/tweets" \
  --model linear="$S/linear" --model fisher="$S/fisher"
printf 'done in %d s\n' "$SECONDS"
