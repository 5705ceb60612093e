"""A Dash app that keeps what a user did in its process's memory, as many do: a page is only right with its own worker.

Each callback is a request of its own, over a new connection, and so could reach any process.
"""

import base64
import hashlib
import os
import uuid

from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

# By page: what it has counted. Only this process has it.
clicks: dict[str, int] = {}


def layout() -> html.Main:
    """Made for each page that is opened."""
    page = str(uuid.uuid4())
    clicks[page] = 0
    return html.Main(
        [
            html.H1("Does every callback come back to its worker?"),
            dcc.Store(id="page", data=page),
            html.Button("Count", id="count"),
            html.P(id="counted"),
            dcc.Upload(html.Button("A file"), id="upload", max_size=-1),
            html.P(id="uploaded"),
        ]
    )


app = Dash(title="Callbacks", update_title=None)
app.layout = layout
server = app.server


@server.after_request
def close(response):
    """Without it a browser would keep one connection, and a balancer that forgets its clients might seem to work."""
    response.headers["Connection"] = "close"
    return response


@app.callback(Output("counted", "children"), Input("count", "n_clicks"), State("page", "data"))
def count(pressed: int | None, page: str) -> str:
    if page not in clicks:
        return f"lost: worker {os.getpid()} does not know this page"
    clicks[page] += pressed is not None
    return f"worker={os.getpid()} clicks={clicks[page]}"


@app.callback(Output("uploaded", "children"), Input("upload", "contents"), State("page", "data"))
def upload(contents: str | None, page: str) -> str:
    if contents is None:
        raise PreventUpdate
    if page not in clicks:
        return f"lost: worker {os.getpid()} does not know this page"
    # data:TYPE;base64,CONTENT
    content = base64.b64decode(contents.partition(",")[2])
    return f"worker={os.getpid()} bytes={len(content)} sha256={hashlib.sha256(content).hexdigest()}"
