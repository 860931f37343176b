#!/usr/bin/env bash
# Train the models of this package: autoencoder, image network, label model. Give the command again to go on.
#   DATA=.data OUT=out jobs/train-embedded.sh
# It leaves within MINUTES and needs neither MPI nor a network. What is there when it ends, or is killed, lies in OUT:
# at most 8 files of at most 15 MiB, weights in float16 (engine/training/pieces.py). To go on elsewhere: FROM=that folder.
#
#   DATA   holds tiles/ (images and *_mask.png) and other label maps         (.data, which git ignores)
#   WORK   checkpoints; what is there is gone on with                        (.work, which git ignores)
#   FROM   a former OUT, taken up where WORK is empty
#   ONLY   the networks to train, in order                                   (autoencoder image labels)
#   TINY   1: networks of no use, on the CPU, to try all this in two minutes
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
DATA=${DATA:-.data} WORK=${WORK:-.work} FROM=${FROM:-} MINUTES=${MINUTES:-9} TINY=${TINY:-0}
OUT=${OUT:-$WORK/out} PYTHON=${PYTHON:-python3} ONLY=${ONLY:-autoencoder image labels}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p "$OUT" "$WORK"

fast=()
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    fast=(--precision bfloat16)
fi
autoencoder=(--data "$DATA/tiles" --out "$WORK/model" --minutes "${AUTOENCODER_MINUTES:-6}" --steps 1000000 --every 1000
    --batch-size 32 --crop 256 --channels 48,128 --blocks 1,4 --latent-channels 16 --fold 2 --padding replicate
    --warmup 300 --ema 0.999 --perceptual 0.1 --equivariance 0.25 --kl 1e-4 --adversarial-from 0.5 --latent-noise 0.05
    --cut 2 --hold-out 8)
image=(--data "$DATA/tiles" --out "$WORK/model" --minutes "${IMAGE_MINUTES:-11}" --steps 1000000 --every 1000
    --batch-size 256 --lr 1e-3 --warmup 400 --ema 0.9995 --dim 48 --dim-mults 1,3,4
    --drop 0.1 --balance 0.5 --own-label 1 --shifts 4 --hold-out 8
    --labels "unknown,carcinoma,necrosis,tumour stroma,other")
labels=(--data "$DATA" --out "$WORK/labels" --minutes "${LABELS_MINUTES:-3}" --steps 1000000 --every 1000
    --batch-size 64 --lr 2e-3 --warmup 300 --ema 0.9995 --hold-out 8)
if [ "$TINY" = 1 ]; then
    small=(--minutes 0 --every 5 --batch-size 2 --threads 1 --warmup 3)
    autoencoder+=("${small[@]}" --steps 12 --crop 64 --channels 8,16 --blocks 1,1)
    image+=("${small[@]}" --steps 12 --every 4 --dim 8 --window 16)
    labels+=("${small[@]}" --steps 8 --dim 8 --dim-mults 1,2)
fi
declare -A place=([autoencoder]=model/vae [image]=model/unet [labels]=labels/unet)

left() { echo $((MINUTES * 60 - SECONDS - 20)); } # seconds; 20 are for the last packing
pack() { "$PYTHON" -m engine.training.pieces pack "$WORK" "$OUT"; }

# network [options] -> 0 finished, 75 to go on with
train() {
    local network=$1 seconds
    shift
    seconds=$(left)
    [ "$seconds" -gt 10 ] || return 75
    local -n options=$network
    timeout --foreground -k 5 $((seconds + 10)) "$PYTHON" -m engine.train "$network" --alone "${options[@]}" "${fast[@]}" "$@" \
        --stop-after "$(awk "BEGIN { print $seconds / 60 }")"
    local status=$?
    case $status in 124 | 137) return 75 ;; esac # too slow to leave by itself: its last checkpoint is there
    return $status
}

everything() {
    local network status
    if [ -n "$FROM" ] && [ -f "$FROM/run.json" ] && [ ! -d "$WORK/model" ]; then
        "$PYTHON" -m engine.training.pieces unpack "$FROM" "$WORK" || return 1
    fi
    for network in $ONLY; do
        [ -e "$WORK/${place[$network]}/finished" ] && continue
        echo "== $network, $(left) s left"
        status=1
        if [ "$network" = image ] && [ "${#fast[@]}" -gt 0 ] && [ "${COMPILE:-1}" = 1 ]; then
            train "$network" --compile && status=0 || status=$?
        fi
        if [ "$status" -ne 0 ] && [ "$status" -ne 75 ]; then
            train "$network" && status=0 || status=$?
        fi
        [ "$status" -eq 0 ] || return "$status"
        touch "$WORK/${place[$network]}/finished"
        pack
    done
}

(while sleep "${PACK_EVERY:-100}"; do pack >/dev/null; done) &
packing=$!
trap 'kill $packing 2>/dev/null; wait $packing 2>/dev/null; pack' EXIT
trap 'exit 143' TERM INT
set -o pipefail
everything 2>&1 | tee -a "$OUT/train.log"
status=${PIPESTATUS[0]}
echo "status $status after $SECONDS s"
exit "$status"
