#!/usr/bin/env bash
# nbconvert 7.17.2 with ipython 9.18.1.
#
# Behaviour: IPython keeps the alt text of an image (`Image(alt=...)`) in the output's metadata.
# nbconvert does not read it: the page says that no description was given. An <img> in an output
# of HTML keeps its alt text.
# One would guess: what the notebook's file holds reaches the HTML page.
# Why it matters: a nightly report of plots is read as such a page. Without alt text its
# findings are lost to readers who do not see the plots, and to a search of the page.
#
# Output seen:
#   the output's metadata: {'image/png': {'alt': 'p95 latency doubles at 8 users'}}
#   image/png on the page: ['No description has been provided for this image']
#   text/html on the page: ['p95 latency doubles at 8 users']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  nbconvert==7.17.2 nbformat==5.11.1 ipython==9.18.1
venv/bin/python - <<'PY'
import base64
import re
import sys

import nbformat.v4 as nb
from IPython.display import Image
from nbconvert import HTMLExporter

ALT = "p95 latency doubles at 8 users"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Er"
    "kJggg=="
)


def alt_on_the_page(data, metadata):
    output = nb.new_output("display_data", data=data, metadata=metadata)
    cell = nb.new_code_cell("plot()", outputs=[output])
    html, _ = HTMLExporter().from_notebook_node(nb.new_notebook(cells=[cell]))
    return re.findall(r'<img[^>]*\balt="([^"]*)"', html)


data, metadata = Image(base64.b64decode(PNG), alt=ALT)._repr_mimebundle_()
as_png = alt_on_the_page(data, metadata)
as_html = alt_on_the_page({"text/html": f'<img alt="{ALT}" src="data:image/png;base64,{PNG}">'}, {})
print(f"the output's metadata: {metadata}")
print(f"image/png on the page: {as_png}")
print(f"text/html on the page: {as_html}")
holds = metadata["image/png"]["alt"] == ALT and len(as_png) == 1 and ALT not in as_png
sys.exit(0 if holds and as_html == [ALT] else "The behaviour has changed.")
PY
