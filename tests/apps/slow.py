"""An app whose page takes its time and then belongs to the process that made it.

The page asks for what only that process has, over and over while other tabs get theirs. Usage: slow.py PORT
"""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SECONDS = 1.0

PAGE = """<!doctype html>
<title>Slow</title>
<div id="result" data-ok="0" data-failed="0" data-done="false">…</div>
<script>
(async () => {
  const result = document.getElementById("result");
  // Other tabs' pages, and their cookies, arrive meanwhile.
  for (let n = 0; n < 12; n++) {
    const answer = await fetch("/mine?process=%d", { cache: "no-store" }).catch(() => ({ ok: false }));
    result.dataset[answer.ok ? "ok" : "failed"]++;
    await new Promise((done) => setTimeout(done, 250));
  }
  result.textContent = "process %d";
  result.dataset.done = true;
})();
</script>
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        process = os.getpid()
        if url.path == "/":
            time.sleep(SECONDS)
            self.answer(200, PAGE % (process, process))
        elif url.path == "/mine" and parse_qs(url.query).get("process") == [str(process)]:
            self.answer(200, "yours")
        else:
            self.answer(404, "another process has it, or nobody")

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.serve_forever()
