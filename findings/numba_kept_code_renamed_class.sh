#!/usr/bin/env bash
# numba 0.68.1 with llvmlite 0.50.0 and numpy 2.4.6.
#
# Behaviour: a function that numba compiled with cache=True takes a NamedTuple. If the NamedTuple
# gets another name, in another file, the next process does not compile the function anew. Its first
# call raises AttributeError, because the kept index names the class that is gone. It does so in
# every process until somebody deletes the kept files. Arguments of other types are struck too.
# One would guess: what can't be read, or does not fit, is compiled anew, as after an edit.
# Why it matters: a workbook keeps compiled simulations between versions. After an upgrade that
# renames a class, every estimate would fail on machines that ran the old version, and on no other.
#
# Output seen:
#   before: 3
#   after, with the tuple: AttributeError
#   after, with plain numbers: AttributeError
#   after, with the kept files deleted: 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
export NUMBA_CACHE_DIR="$folder/kept"

cat > total.py <<'PY'
from numba import njit


@njit(cache=True)
def total(pair):
    return pair[0] + pair[1]
PY
write_pair() {
  printf 'from typing import NamedTuple\n\n\nclass %s(NamedTuple):\n    a: int\n    b: int\n' "$1" > pair.py
}
call() { # the name of the class, and the argument
  venv/bin/python -c "
from pair import $1
from total import total
try:
    print(total($2))
except AttributeError:
    print('AttributeError')
"
}

write_pair Pair
before=$(call Pair 'Pair(1, 2)')
write_pair Couple
tuple=$(call Couple 'Couple(1, 2)')
numbers=$(call Couple '(1, 2)')
rm -rf "$NUMBA_CACHE_DIR"
anew=$(call Couple 'Couple(1, 2)')
echo "before: $before"
echo "after, with the tuple: $tuple"
echo "after, with plain numbers: $numbers"
echo "after, with the kept files deleted: $anew"
[ "$before $tuple $numbers $anew" = "3 AttributeError AttributeError 3" ]
