#!/usr/bin/env bash
# CPython 3.11: its asyncio, which uvicorn builds on. The certificate is by trustme 1.2.1.
#
# Behaviour: under TLS, asyncio hands an answer at once to another transport, of TCP, beneath. From
# then on `get_write_buffer_size()` leaves it out. It says 0 while megabytes wait for a client that
# does not read. `pause_writing()` isn't called.
# One would guess: it is what the client has yet to take from this process, as over TCP.
# Why it matters: a server can bound by it the memory that slow clients hold. Such a bound passes
# its tests over HTTP. Over HTTPS an image for each connection is not counted.
#
# Output seen:
#   TCP: 12.1 MB wait, told: 12.1 MB, paused: True
#   TLS: 12.1 MB wait, told: 0.0 MB, paused: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check trustme==1.2.1
venv/bin/python - <<'PY'
import asyncio
import socket
import ssl
import sys

import trustme

MB = 10**6
ANSWER = bytes(16 * MB)
authority = trustme.CA()
for_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
authority.issue_cert("localhost").configure_cert(for_server)
for_client = ssl.create_default_context()
authority.configure_trust(for_client)


class Writes(asyncio.Protocol):
    is_paused = False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(ANSWER)

    def pause_writing(self):
        self.is_paused = True


def connect(port, context):
    client = socket.create_connection(("127.0.0.1", port))
    return context.wrap_socket(client, server_hostname="localhost") if context else client


async def measure(name, own_context, other_context):
    protocol = Writes()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=own_context)
    port = server.sockets[0].getsockname()[1]
    client = await asyncio.to_thread(connect, port, other_context)
    await asyncio.sleep(1)
    transport = protocol.transport
    beneath = transport._ssl_protocol._transport if own_context else transport
    told = transport.get_write_buffer_size()
    waits = beneath.get_write_buffer_size()
    sizes = f"{waits / MB:.1f} MB wait, told: {told / MB:.1f} MB"
    print(f"{name}: {sizes}, paused: {protocol.is_paused}")
    transport.abort()
    client.close()
    server.close()
    return told, protocol.is_paused, waits


async def main():
    told, is_paused, waits = await measure("TCP", None, None)
    tells_all = told == waits > MB and is_paused
    told, is_paused, waits = await measure("TLS", for_server, for_client)
    tells_nothing = told == 0 and waits > MB and not is_paused
    return tells_all and tells_nothing


sys.exit(0 if asyncio.run(main()) else "The behaviour has changed.")
PY
