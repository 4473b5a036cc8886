#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Trains for MINUTES on one GPU from one packed file, without a network: PyTorch 2.11, Python 3.12.
#
#     benchmarks/gpu_training.sh MINUTES OUT [PACK] [INITIAL]
#
# OUT gets, every KEEP_MINUTES and at the end, the averaged weights (ema-STEP.safetensors and .json), log.jsonl and
# validation.md; a kill at any second leaves whole files. INITIAL is such a checkpoint, or empty to start anew. The
# settings are those of one H100; each can be given in the environment. Opening the pack and fitting presence at the end
# come on top of MINUTES.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: $0 MINUTES OUT [PACK] [INITIAL]" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
minutes=$1
out=$2
pack=${3:-$root/benchmarks/training.pack}
initial=${4:-}

: "${PYTHON:=python3}"
: "${DEVICE:=cuda}"
: "${PRESET:=small}"       # the network, unless INITIAL says which
: "${BATCH_SIZE:=128}"
: "${SEQUENCES:=28}"       # of neighbouring slices in each batch
: "${SEQUENCE_LENGTH:=8}"
: "${LOADERS:=14}"         # processes that make the batches; 0: on the GPU
: "${SIZE:=192}"            # side in pixels, from the first step on
: "${PRECISION:=auto}"      # bfloat16 where the hardware multiplies in it
: "${LEARNING_RATE:=1e-3}"
: "${WARMUP:=40}"          # steps; short, because weights that were trained before soon find back
: "${KEEP_MINUTES:=3}"
: "${THREADS:=1}"           # of PyTorch on the CPU, in each process
: "${RUN_FOLDER:=$(mktemp -d)}"  # the state to resume from, on a local disk
: "${VALIDATION_PACK:=}"    # empty: every tenth patient of PACK is held out
: "${SEED:=0}"

export OMP_NUM_THREADS="$THREADS"
set -- --pack "$pack" --minutes "$minutes" --keep "$out" --run-folder "$RUN_FOLDER" --out "$RUN_FOLDER/final"
set -- "$@" --device "$DEVICE" --batch-size "$BATCH_SIZE" --precision "$PRECISION"
set -- "$@" --native-size "$SIZE" --coarse-size "$SIZE" --learning-rate "$LEARNING_RATE" --warmup "$WARMUP"
set -- "$@" --save-minutes "$KEEP_MINUTES" --seed "$SEED"
set -- "$@" --sequences "$SEQUENCES" --sequence-length "$SEQUENCE_LENGTH" --loaders "$LOADERS"
if [ -n "$initial" ]; then set -- "$@" --initial "$initial"; else set -- "$@" --preset "$PRESET"; fi
[ -z "$VALIDATION_PACK" ] || set -- "$@" --validation-pack "$VALIDATION_PACK"
cd "$root"
exec "$PYTHON" -m kprism_model train "$@"
