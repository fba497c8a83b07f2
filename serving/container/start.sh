#!/bin/sh
# Checks the plans against this GPU and TensorRT, then becomes tritonserver. What is served is mounted at /models.
#   sh serving/container/start.sh [more options of tritonserver]
set -eu
models=${MODELS:-/models}
PYTHONPATH=/opt/clipsieve python3 -m recipes.plans "$models"
cd "$(mktemp -d)"  # the current directory comes first on the Python processes' sys.path
exec tritonserver \
    --model-repository="$models" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --exit-timeout-secs=30 \
    --backend-config=python,shm-default-byte-size=16777216 \
    --backend-config=python,shm-growth-byte-size=16777216 \
    "$@"
