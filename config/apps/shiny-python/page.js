// Runs the sticky test as soon as the session has sent its route. The result is readable in #result: its text for
// people, data-ok, data-failed and data-done for scripts.
"use strict";
(() => {
  const REQUESTS = 100;
  const AT_ONCE = 4; // below a browser's six connections per host: none has to wait for another
  const element = (id) => document.getElementById(id);
  const tally = { ok: 0, failed: 0, done: false };

  const show = (text) => {
    const result = element("result");
    result.textContent = text;
    result.dataset.ok = tally.ok;
    result.dataset.failed = tally.failed;
    result.dataset.done = tally.done;
    element("progress").value = tally.ok + tally.failed;
  };

  const fail = (number, reason) => {
    tally.failed += 1;
    const item = document.createElement("li");
    item.value = number;
    item.textContent = reason;
    element("failures").append(item);
  };

  const request = async (route, worker, number) => {
    try {
      const url = new URL(route, document.baseURI);
      url.searchParams.set("request", number); // a cache that ignores no-store still cannot answer
      const response = await fetch(url, { cache: "no-store" });
      if (!response.ok) return fail(number, `status ${response.status}: another worker answered`);
      const answer = await response.json();
      if (answer.worker !== worker) return fail(number, `worker ${answer.worker} answered instead of ${worker}`);
      tally.ok += 1;
    } catch (error) {
      fail(number, `no answer: ${error.message}`);
    }
  };

  const run = async ({ url, worker }) => {
    element("worker").textContent = worker;
    let next = 1;
    const lane = async () => {
      while (next <= REQUESTS) {
        await request(url, worker, next++);
        show(`${tally.ok + tally.failed} of ${REQUESTS} answered, ${tally.ok} passed`);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, lane));
    tally.done = true;
    const failures = tally.failed ? `, ${tally.failed} failed` : "";
    show(`${tally.ok}/${REQUESTS} passed${failures}`);
  };

  $(document).on("shiny:disconnected", () => {
    if (!tally.done) show("The connection to the session was lost before the test ended: reload the page.");
  });
  Shiny.addCustomMessageHandler("sticky-test", run);
})();
