#!/usr/bin/env bash
# Everything that only a GPU can show, in slices that each end in time: run it again until it says that it is done.
# Arguments go to bench/gpu_check.py; PYTHON names the interpreter.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
