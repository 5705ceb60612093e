"""The standard sticky load-balancing test, as a Shiny for Python app.

A session lives in one worker process. When it starts, it registers a route that only this process knows, and sends
the address to the page. The page requests it 100 times, each time over a new connection: any other worker answers
404. So 100/100 means that every connection of this browser reached the worker that holds its session.
"""

import os
from pathlib import Path

from shiny import App, Inputs, Outputs, Session, reactive, ui
from starlette.requests import Request
from starlette.responses import JSONResponse

HERE = Path(__file__).parent

page = ui.page_fixed(
    ui.include_css(HERE / "page.css"),
    ui.tags.main(
        ui.h1("Does every request come back to its worker?"),
        ui.p(
            "This page's session lives in one of several processes, ",
            ui.tags.strong("worker ", ui.span("…", id="worker")),
            ". It now asks 100 times, over a new connection each, for something that only that process has. "
            "Any other worker answers 404.",
        ),
        ui.tags.progress(id="progress", max="100", value="0", aria_label="requests answered"),
        ui.div(
            "Waiting for the session …",
            id="result",
            role="status",
            data_ok="0",
            data_failed="0",
            data_done="false",
        ),
        ui.tags.ol(id="failures", aria_label="requests that failed"),
    ),
    # Inline, because a file of its own could be fetched from another worker than the one being tested.
    ui.tags.script(ui.HTML((HERE / "page.js").read_text())),
    title="Sticky test",
    lang="en",
)


def server(input: Inputs, output: Outputs, session: Session) -> None:
    def answer(_: Request) -> JSONResponse:
        # Without `Connection: close` the browser would send all 100 requests over one connection, and a balancer
        # that forgets its clients would pass whenever that one happened to be right.
        return JSONResponse({"worker": os.getpid()}, headers={"Connection": "close", "Cache-Control": "no-store"})

    url = session.dynamic_route("test", answer)

    @reactive.effect
    async def start() -> None:
        await session.send_custom_message("sticky-test", {"url": url, "worker": os.getpid()})


app = App(page, server)
