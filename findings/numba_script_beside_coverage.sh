#!/usr/bin/env bash
# numba 0.68.1 with llvmlite 0.50.0 and numpy 2.4.6.
#
# Behaviour: numba looks for the package `coverage` when it is imported. It finds any file of that
# name in the folder of the script that runs. If that file is not the package, `import numba` raises
# AttributeError: "module 'coverage' has no attribute ...". The script imports no coverage itself.
# One would guess: a compiler asks for a tool of tests only when tests run, or goes on without it.
# Why it matters: a folder of benchmarks may well have a coverage.py, for the coverage of intervals.
# Then every other script of that folder that simulates ends at its first line.
#
# Output seen:
#   alone: numba is imported
#   beside coverage.py: AttributeError
#   the same script, run as a module from another folder: numba is imported
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6

mkdir benchmarks
cat > benchmarks/simulate.py <<'PY'
try:
    import numba
except AttributeError:
    print("AttributeError")
else:
    print("numba is imported")
PY
alone=$(venv/bin/python benchmarks/simulate.py)
echo 'INTERVALS = 1000' > benchmarks/coverage.py
beside=$(venv/bin/python benchmarks/simulate.py)
as_module=$(venv/bin/python -m benchmarks.simulate)
echo "alone: $alone"
echo "beside coverage.py: $beside"
echo "the same script, run as a module from another folder: $as_module"
[ "$alone / $beside / $as_module" = "numba is imported / AttributeError / numba is imported" ]
