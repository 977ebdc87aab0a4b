# What the experiments share. $LINNET is the program, $LINNET_DATA holds CIFAR-10, $RUNS gets the runs and the pictures (each
# script may be stopped and started again: finished runs are kept, stopped ones go on). DATA: how many training images, or full
# (45,000). PRECISION: f32, so that processors with bf16 and without it compute the same; a few scripts say bf16.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LINNET=${LINNET:-$here/../build/release/linnet}
RUNS=${RUNS:-runs/experiments}
PRECISION=${PRECISION:-f32}
mkdir -p "$RUNS"

if [ -n "${DRY:-}" ]; then  # DRY=1: only look whether the script's configs and settings are sound, on any processor
  export REAL=$LINNET LINNET=$here/dry
  PRECISION=f32
fi

# runs EXPERIMENT/WHICH CONFIG... [options of linnet sweep]
runs() {
  local name=$1 data=()
  shift
  [ "${DATA:=5000}" = full ] || data=(--set "data.limit=$DATA" --set data.val=2000)
  [ -z "${DRY:-}" ] || data=()
  "$LINNET" sweep --set "train.precision=$PRECISION" "$@" "${data[@]}" --set log.tensorboard=false --set checkpoint.keep=2 --out "$RUNS/$name" -j 1 || [ $? = 5 ]  # a run that diverges is a result, too
}
# picture NAME FOLDER [options of collect]: the table of $RUNS/FOLDER, and its picture $RUNS/NAME.svg
picture() { [ -n "${DRY:-}" ] || "$here/collect" "$RUNS/$2" "$RUNS/$1.svg" "${@:3}"; }
