#!/usr/bin/env bash
# Everything that only a GPU can show, in two calls of at most 7 and 4 minutes: bench/gpu_check.sh, then
# bench/gpu_check.sh --call 2. Arguments go to bench/gpu_check.py; PYTHON names the interpreter.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
