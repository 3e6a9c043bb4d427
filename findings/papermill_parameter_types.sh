#!/usr/bin/env bash
# papermill 2.7.0 with ipykernel 7.4.0.
#
# Behaviour: execute_notebook() in Python writes its parameters into a cell as source code. A tuple
# becomes its text there: (1, 2, 4) arrives as the string "(1, 2, 4)", also inside of a dict. The
# notebook's metadata, which papermill writes beside it, hold a list. What JSON can't hold, such as
# a range, raises an error at once.
# One would guess: a tuple arrives as a tuple or as a list, or raises an error as a range does.
# Why it matters: `users=(1, 2, 4)` arrives as text, and a loop over it asks for "(" users. The record
# of the run says [1, 2, 4]. So a notebook has to check types in its first cell.
#
# Output seen:
#   list [1, 2, 4]: the cell has list [1, 2, 4], the metadata have [1, 2, 4]
#   tuple (1, 2, 4): the cell has str '(1, 2, 4)', the metadata have [1, 2, 4]
#   dict {'users': (1, 2)}: the cell has dict {'users': '(1, 2)'}, the metadata have {'users': [1, 2]}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  papermill==2.7.0 ipykernel==7.4.0 nbformat==5.11.1
venv/bin/python -m ipykernel install --prefix "$folder/kernels" --name python3 > log.txt 2>&1
export JUPYTER_PATH="$folder/kernels/share/jupyter"
venv/bin/python - <<'PY' 2> errors.txt || { tail -3 errors.txt; exit 1; }
import json
import sys

import nbformat
import nbformat.v4 as nb
import papermill

first = nb.new_code_cell("value = None", metadata={"tags": ["parameters"]})
last = nb.new_code_cell("print(type(value).__name__, repr(value))")
kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
nbformat.write(nb.new_notebook(cells=[first, last], metadata=kernel), "in.ipynb")
arrived = []
for value in ([1, 2, 4], (1, 2, 4), {"users": (1, 2)}):
    run = papermill.execute_notebook(
        "in.ipynb", "out.ipynb", {"value": value}, kernel_name="python3", progress_bar=False
    )
    in_cell = run.cells[-1].outputs[0]["text"].strip()
    with open("out.ipynb") as file:
        noted = json.load(file)["metadata"]["papermill"]["parameters"]["value"]
    arrived.append((in_cell, noted))
    print(f"{type(value).__name__} {value}: the cell has {in_cell}, the metadata have {noted}")
expected = [
    ("list [1, 2, 4]", [1, 2, 4]),
    ("str '(1, 2, 4)'", [1, 2, 4]),
    ("dict {'users': '(1, 2)'}", {"users": [1, 2]}),
]
sys.exit(0 if arrived == expected else "The behaviour has changed.")
PY
