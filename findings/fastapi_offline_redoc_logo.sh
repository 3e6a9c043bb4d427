#!/usr/bin/env bash
# fastapi-offline 1.7.7, with FastAPI 0.165.0.
#
# Behaviour: its /redoc page names no other server. The script of Redoc that it ships does: once the
# page is drawn, it adds an image with an address at cdn.redoc.ly. Chromium asks for it.
# One would guess: a package whose pages don't rely on a CDN loads all from its own server.
# Why it matters: whoever runs a server for a closed network takes these pages so that browsers ask
# nobody else. A test that reads only the page sees nothing. The page does not ask if its answer has
# the header `Content-Security-Policy: img-src 'self' data: blob:`.
#
# Output seen:
#   addresses elsewhere in the page: []
#   its scripts: ['/static-offline-docs/redoc.standalone.js']
#   images that they add: ['https://cdn.redoc.ly/redoc/logo-mini.svg']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  fastapi-offline==1.7.7 fastapi==0.165.0 starlette==1.10.0 httpx==0.28.1
venv/bin/python -W ignore - <<'PY'
import re
import sys

from fastapi.testclient import TestClient
from fastapi_offline import FastAPIOffline

client = TestClient(FastAPIOffline())
page = client.get("/redoc").text
in_page = re.findall(r"https?://[^\"' <]+", page)
print("addresses elsewhere in the page:", in_page)
scripts = re.findall(r'<script src="([^"]+)"', page)
print("its scripts:", scripts)
text = "".join(client.get(script).text for script in scripts)
images = re.findall(r'createElement\("img",{[^{}]*src:"(https?://[^"]+)"', text)
print("images that they add:", images)
holds = not in_page and images == ["https://cdn.redoc.ly/redoc/logo-mini.svg"]
sys.exit(0 if holds else "The behaviour has changed.")
PY
