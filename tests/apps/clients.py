"""What load generators and curl ask of an app: files both ways, a stream of events, an echo. An ASGI application.

Everything that it answers has the process's number in `x-process`.
"""

import asyncio
import hashlib
import os

PIECE = b"x" * 65_536


async def app(scope, receive, send):
    match scope["type"]:
        case "lifespan":
            while (event := await receive())["type"] != "lifespan.shutdown":
                await send({"type": event["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
        case "websocket":
            await echo(receive, send)
        case "http":
            await http(scope, receive, send)


async def echo(receive, send):
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({**event, "type": "websocket.send"})


async def http(scope, receive, send):
    match scope["path"].strip("/").split("/"):
        case ["upload"]:
            text = await digest(receive)
            await begin(send, len(text))
            await send({"type": "http.response.body", "body": text})
        case ["download", count]:
            await begin(send, int(count))
            rest = int(count)
            while rest > 0:
                piece = PIECE[:rest]
                rest -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        case ["events"]:
            await events(receive, send)
        case _:
            await begin(send, 3)
            await send({"type": "http.response.body", "body": b"ok\n"})


async def begin(send, length):
    headers = [(b"content-length", str(length).encode()), (b"x-process", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def digest(receive):
    """How many bytes came, and their SHA-256."""
    sha, count = hashlib.sha256(), 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError("the client left in the middle of its upload")
        sha.update(event["body"])
        count += len(event["body"])
        if not event["more_body"]:
            return f"bytes={count} sha256={sha.hexdigest()}\n".encode()


async def events(receive, send):
    """One event; then silence until the client has gone."""
    headers = [(b"content-type", b"text/event-stream"), (b"x-process", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
