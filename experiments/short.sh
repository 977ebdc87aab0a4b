# What two cores can bear: the loss of 256 fixed training images of CIFAR-10 after 50 batches of 128 (6,400 images) without a
# schedule, as `linnet check --only loss` measures it. Seed 0.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# short LABEL CONFIG KEY=VALUE...
short() {
  local label=$1 config=$2 set=()
  shift 2
  for key in "$@"; do set+=(--set "$key"); done
  printf '%-34s' "$label"
  { "$LINNET" check "$here/$config" --only loss --json --set "train.precision=$PRECISION" "${set[@]}" || [ $? = 5 ]; } | sed 's/.*"text":"\([^"]*\)".*/\1/'
}
