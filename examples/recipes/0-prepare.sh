#!/usr/bin/env bash
# What the recipes begin with: texts, a model that is in production, and the recipes beside them.
. "$(dirname "$0")/../settings.sh"
R=$D/recipes

python -m examples.sentiment.minilm "$R/base"
python -m examples.recipes.data "$R/text" --held-out "${CLMERGE_ROWS:-$(quick 40 800)}"
bash examples/recipes/release.sh
