#!/usr/bin/env bash
# Locust 2.47.0.
#
# Behaviour: a user class that sets `tasks` does not replace the tasks of its base class. Both
# lists are joined, while every other attribute (`wait_time`, `host`) is replaced as in Python.
# One would guess: `tasks = [large]` in a subclass means large images alone.
# Why it matters: "the same user, but with large images" sends the small ones too. The
# throughput is that of a mix, and looks better than the server is.
#
# Output seen:
#   the base's tasks: ['small']
#   the subclass sets ['large'] and has ['small', 'large']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check locust==2.47.0
venv/bin/python - <<'PY'
import sys

from locust import User, constant


def small(user):
    pass


def large(user):
    pass


class Visitor(User):
    wait_time = constant(1)
    tasks = [small]


class LargeVisitor(Visitor):
    wait_time = constant(2)
    tasks = [large]


names = [one.__name__ for one in LargeVisitor.tasks]
print(f"the base's tasks: {[one.__name__ for one in Visitor.tasks]}")
print(f"the subclass sets ['large'] and has {names}")
sys.exit(0 if names == ["small", "large"] else "The behaviour has changed.")
PY
