# Sourced by the scripts of the examples: where they write and how much they do.
#
#   CLMERGE_DEMO     folder for everything that is made (default: demo)
#   CLMERGE_STEPS    fine-tuning steps; CLMERGE_SAMPLES rows for a Fisher; CLMERGE_ROWS held-out rows
#   CLMERGE_QUICK=1  hardly any of each: does it all run? (the numbers then mean nothing)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

D=${CLMERGE_DEMO:-demo}
quick() { if [ "${CLMERGE_QUICK:-0}" = 1 ]; then echo "$1"; else echo "$2"; fi; }

# clmerge and Python of the environment that make sets up, unless another one is active.
if ! command -v clmerge >/dev/null && [ -x .venv/bin/clmerge ]; then
  PATH="$PWD/.venv/bin:$PATH"
fi

# torch's threads wait asleep. By default they spin, and where another process holds a core each
# step takes five times as long.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# Everything is on this disk: nothing may be looked up, and no bar is worth a line in a log.
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
