#!/usr/bin/env bash
# CPython 3.11.7 (3.10, 3.12 and 3.13 do the same), Linux or macOS. It takes the `python3` it finds.
#
# Behaviour: a script that ends by KeyboardInterrupt dies by SIGINT, so that a shell knows. A
# script that ends by a subclass of KeyboardInterrupt exits with status 1, as after any error.
# One would guess: a subclass counts as its base, as it does in `except`.
# Why it matters: Ctrl-C on a shell loop over load levels stops the loop only if the program
# died by the signal. With a subclass ("Stopped", to tell where) the loop goes on with the next
# level.
#
# Output seen:
#   Python 3.11.7, raise KeyboardInterrupt: died by signal 2
#   Python 3.11.7, raise Stopped: exit status 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python - <<'PY'
import subprocess
import sys

PROGRAM = "class Stopped(KeyboardInterrupt): pass\nraise {}"


def status(exception):
    command = [sys.executable, "-c", PROGRAM.format(exception)]
    code = subprocess.run(command, stderr=subprocess.DEVNULL).returncode
    words = f"died by signal {-code}" if code < 0 else f"exit status {code}"
    print(f"Python {sys.version.split()[0]}, raise {exception}: {words}")
    return code


holds = status("KeyboardInterrupt") == -2 and status("Stopped") == 1
sys.exit(0 if holds else "The behaviour has changed.")
PY
