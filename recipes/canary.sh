#!/usr/bin/env bash
# Does the plugin still work with the newest verl and sglang that go together? In an environment of its own:
#   recipes/canary.sh [resolve]     resolve: only tell which versions those are
#   OUT     folder of the environment and the logs   [runs/canary]
#   STEPS   training steps of the run                     [2]
# Prints what differs from requirements.lock and from the pins in verl_v05/compat, then runs the contract's tests and one
# training run on the CPU. Takes 12 GB of disk and about 15 minutes; not for CI, where the network would decide.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=${OUT:-$project/runs/canary} STEPS=${STEPS:-2}
mkdir -p "$OUT"
cd "$project"

# Ours pin both: here they are the least that may be found, and all others follow.
sed -E 's/^(verl|sglang|TransferQueue)==/\1>=/; s/^(tabpfn|sentence-transformers)==.*/\1/' requirements.in > "$OUT/requirements.in"
uv pip compile --quiet --upgrade --python-version 3.11 "$OUT/requirements.in" -o "$OUT/requirements.lock"
echo "Newer than requirements.lock (of $(grep -c == requirements.lock) packages):"
versions() { grep -E '^[A-Za-z0-9._-]+==' "$1" | sed -E 's/ .*//; s/==/ /' | sort; }
join <(versions requirements.lock) <(versions "$OUT/requirements.lock") | awk '$2 != $3 { print "  " $1, $2, "->", $3 }'
if [[ ${1:-} == resolve ]]; then exit; fi

uv venv --quiet --clear --python 3.11 "$OUT/env"
export VIRTUAL_ENV=$OUT/env PATH=$OUT/env/bin:$PATH
uv pip install --quiet --compile-bytecode -r "$OUT/requirements.lock"
uv pip install --quiet --no-deps --no-build-isolation --editable .

# check NAME COMMAND...: runs it with a log, tells how it ended
failed=0
check() {
  local name=$1; shift
  if "$@" > "$OUT/$name.log" 2>&1; then echo "$name: ok"; else
    failed=1
    echo "$name: failed, $OUT/$name.log ends with"; tail -n 15 "$OUT/$name.log" | sed 's/^/  /'
  fi
}
check contract python -m verl_v05.compat.contract
grep -vi warn "$OUT/contract.log" | tail -n 40
check tests python -m pytest -q tests/test_contract.py tests/test_config_keys.py tests/test_run_check.py tests/test_dry_run.py
check training python -m recipes.demo --method v05_rounds --steps "$STEPS" --out "$OUT/run"
exit $failed
