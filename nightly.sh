#!/usr/bin/env bash
# Measures one night into a study with the date as its name. Compares it with the first valid one of the last 14
# nights, and writes results/index.html. The exit status is 1 where the night is worse than that one, or where one of
# its runs is not valid. It is 2 where an option is refused; then no run is made.
#
#     MODEL=sdxl USERS=4 DURATION_S=300 REPEAT=5 BENCHLIB_RESULTS=~/nights ./nightly.sh
set -u
cd "$(dirname "$0")" && PATH="$PWD/.venv/bin:$PATH"
export JUPYTER_PREFER_ENV_PATH=1
export BENCHLIB_RESULTS="${BENCHLIB_RESULTS:-$PWD/results}"
export NIGHT="${NIGHT:-$(date +%F)}"  # one date, also where midnight comes in between
export MODEL="${MODEL:-sdxl}" USERS="${USERS:-4}" DURATION_S="${DURATION_S:-300}" REPEAT="${REPEAT:-5}"
folder="$BENCHLIB_RESULTS/$NIGHT"
status=0

# 1) Measure the night. Its valid runs are kept where it is measured again.
python -m benchlib.questions.measure_night measure || status=$?
[ "$status" = 2 ] && exit 2

# 2) Compare it with the first valid night. The first night of all has nothing to compare with.
parameters=$(python -m benchlib.questions.measure_night compare) || status=1
if [ -n "$parameters" ]; then
  papermill notebooks/06_compare.ipynb "$folder/06_compare.ipynb" --no-progress-bar -y "$parameters" || status=1
  python -m benchlib page "$folder/06_compare.ipynb" || status=1
fi

# 3) Write one page of all results.
python -m benchlib report || status=1
exit $status
