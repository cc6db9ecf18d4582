#!/usr/bin/env bash
# A new adapter on a frozen encoder, on one machine: recipes/value_model/laptop.sh [key=value ...]
set -euo pipefail
exec python -m value_model.train --config "$(dirname "$0")/laptop.yaml" "$@"
