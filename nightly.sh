#!/usr/bin/env bash
# Measures one night into a study with the date as its name. Compares it with the first of the last 14 nights, and
# writes results/index.html. The exit status is 1 where the night is worse than that first one, or was not measured.
#
#     MODEL=sdxl USERS=4 DURATION_S=300 REPEAT=5 BENCHLIB_RESULTS=~/nights ./nightly.sh
set -u
cd "$(dirname "$0")" && PATH="$PWD/.venv/bin:$PATH"
export JUPYTER_PREFER_ENV_PATH=1
export BENCHLIB_RESULTS="${BENCHLIB_RESULTS:-$PWD/results}"
night="${NIGHT:-$(date +%F)}"
folder="$BENCHLIB_RESULTS/$night"
status=0

# 1) Measure the night.
python - "$night" "${MODEL:-sdxl}" "${USERS:-4}" "${DURATION_S:-300}" "${REPEAT:-5}" <<'END' || status=1
import sys

import benchlib as bl

night, model, users, duration_s, repeat = sys.argv[1:]
point = bl.Point(
    bl.ClosedLoop(int(users)),
    load={"model": model},
    duration_s=float(duration_s),
    warmup_s=float(duration_s) / 10,
)
study = bl.sweep([point], study=night, repeat=int(repeat))
sys.exit(any(run.record["status"] != "finished" for run in study.runs))
END

# 2) Compare it with the first of the last 14 nights. The first night of all has nothing to compare with.
nights=$(find "$BENCHLIB_RESULTS" -maxdepth 1 -type d -name '20??-??-??' | sort | tail -n 14)
if [ "$(wc -l <<< "$nights")" -gt 1 ]; then
  studies=$(sed 's/.*/"&"/' <<< "$nights" | paste -sd,)
  parameters="{studies: [$studies], gate: true}"
  papermill notebooks/06_compare.ipynb "$folder/06_compare.ipynb" --no-progress-bar -y "$parameters" || status=1
  jupyter nbconvert --to html --log-level ERROR "$folder/06_compare.ipynb" || status=1
fi

# 3) Write one page of all results.
python -m benchlib report || status=1
exit $status
