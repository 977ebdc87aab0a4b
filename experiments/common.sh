# What the experiments share. $LINNET is the program, $LINNET_DATA holds CIFAR-10, $RUNS gets the runs (each script may be
# stopped and started again: finished runs are kept, stopped ones go on). DATA=full: all 45,000 training images, not 5,000.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LINNET=${LINNET:-$here/../build/release/linnet}
RUNS=${RUNS:-runs/experiments}
mkdir -p "$RUNS"

# runs EXPERIMENT/WHICH CONFIG... [options of linnet sweep]
runs() {
  local name=$1 data=()
  shift
  [ "${DATA:-subset}" = full ] || data=(--set data.limit=5000 --set data.val=2000)
  "$LINNET" sweep "$@" "${data[@]}" --set log.tensorboard=false --set checkpoint.keep=2 --out "$RUNS/$name" -j 1 || [ $? = 5 ]  # a run that diverges is a result, too
}
collect() { "$here/collect" "$RUNS/$1" "${@:2}"; }
