#!/usr/bin/env bash
# Films, then tweets, by transformers' Trainer: what is left of films with and without EWC?
. "$(dirname "$0")/../settings.sh"
S=$D/trainer
STEPS=${CLMERGE_STEPS:-$(quick 1 100)}
SAMPLES=${CLMERGE_SAMPLES:-$(quick 4 256)}

python -m examples.sentiment.minilm "$S/base"
python -m examples.sentiment.snippets "$S/text" --held-out "${CLMERGE_ROWS:-$(quick 8 800)}"
python -m examples.finetune "$S/base" "$S/text/films/train.jsonl" "$S/films" \
  --steps "$STEPS" --batch-size 32 --max-length 64 --every 25
clmerge fisher "$S/films" --data "$S/text/films/train.jsonl" --samples "$SAMPLES"

MODELS=()
for lambda in 0 $(quick 1e4 "1e2 1e4 1e6"); do
  python -m examples.trainer.train "$S/films" "$S/text/tweets/train.jsonl" "$S/tweets-$lambda" \
    --strength "$lambda" --steps "$STEPS"
  MODELS+=(--model "lambda-$lambda=$S/tweets-$lambda")
done

python -m examples.evaluate "$S" --batch-size 50 \
  --text films="$S/text/films/held-out.jsonl" --text tweets="$S/text/tweets/held-out.jsonl" \
  --model films="$S/films" "${MODELS[@]}"
printf 'done in %d s\n' "$SECONDS"
