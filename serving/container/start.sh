#!/bin/sh
# Checks plans, proof and CPU against each other (common.preflight), then becomes tritonserver. What is served is mounted at /models.
#   sh serving/container/start.sh [more options of tritonserver]
# MODEL_CONTROL=explicit with a CLIPSIEVE_ADMIN_KEY: serving.rollout may replace heads while they serve.
# TRACING_URL=http://collector:4318/v1/traces: OpenTelemetry's spans of one request in TRACING_RATE (100) go there.
set -eu
models=${MODELS:-/models}
control=${MODEL_CONTROL:-none}
# Loading a model can bring files along, which is running code; without a key of yours nobody has one.
admin_apis=model-repository,shared-memory,trace,logging
key=${CLIPSIEVE_ADMIN_KEY:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
case $key in
    *[!A-Za-z0-9_-]*) echo "start.sh: CLIPSIEVE_ADMIN_KEY may hold letters, digits, _ and - only" >&2; exit 1 ;;
    ????????????????*) ;;
    *) echo "start.sh: CLIPSIEVE_ADMIN_KEY needs 16 or more characters, found ${#key}" >&2; exit 1 ;;
esac
case $control in
    none) ;;
    explicit)
        : "${CLIPSIEVE_ADMIN_KEY:?MODEL_CONTROL=explicit needs one, e.g. of: openssl rand -hex 16}"
        set -- "--load-model=*" "$@" ;;
    *) echo "start.sh: MODEL_CONTROL is none or explicit, found $control" >&2; exit 1 ;;
esac
if [ -n "${TRACING_URL:-}" ]; then
    set -- --trace-config=mode=opentelemetry --trace-config=level=TIMESTAMPS --trace-config=count=-1 \
        "--trace-config=rate=${TRACING_RATE:-100}" "--trace-config=opentelemetry,url=$TRACING_URL" "$@"
fi
PYTHONPATH=/opt/clipsieve python3 -m common.preflight "$models"
rm -f "${TMPDIR:-/tmp}"/clipsieve-proved-*  # health.py: this server is still to be proved
cd "$(mktemp -d)"  # the current directory comes first on the Python processes' sys.path
exec tritonserver \
    --model-repository="$models" \
    --model-control-mode="$control" \
    --disable-auto-complete-config \
    --grpc-infer-allocation-pool-size=1 \
    --exit-timeout-secs=30 \
    --backend-config=python,shm-default-byte-size=16777216 \
    --backend-config=python,shm-growth-byte-size=16777216 \
    --grpc-restricted-protocol="$admin_apis:clipsieve-key=$key" \
    --http-restricted-api="$admin_apis:clipsieve-key=$key" \
    "$@"
