# The standard sticky load-balancing test, as an R Shiny app.
#
# A session lives in one worker process. When it starts, it registers data that only this process knows, and sends the
# address to the page. The page requests it 100 times, each time over a new connection: any other worker answers 404. So
# 100/100 means that every connection of this browser reached the worker that holds its session.

library(shiny)

# The page is the one of the app in Python.
page_file <- function(name) {
  paste(readLines(file.path("..", "shiny-python", name)), collapse = "\n")
}

ui <- fixedPage(
  title = "Sticky test",
  lang = "en",
  tags$style(HTML(page_file("page.css"))),
  tags$main(
    h1("Does every request come back to its worker?"),
    p(
      "This page's session lives in one of several processes, ",
      tags$strong("worker ", span("\u2026", id = "worker")),
      ". It now asks 100 times, over a new connection each, for something that only that process has. ",
      "Any other worker answers 404."
    ),
    tags$progress(id = "progress", max = "100", value = "0", `aria-label` = "requests answered"),
    div(
      "Waiting for the session \u2026",
      id = "result", role = "status",
      `data-ok` = "0", `data-failed` = "0", `data-done` = "false"
    ),
    tags$ol(id = "failures", `aria-label` = "requests that failed")
  ),
  # Inline, because a file of its own could be fetched from another worker than the one being tested.
  tags$script(HTML(page_file("page.js")))
)

server <- function(input, output, session) {
  # Without `Connection: close` the browser would send all 100 requests over one connection, and a balancer that forgets
  # its clients would pass whenever that one happened to be right.
  answer <- function(data, request) {
    list(
      status = 200L,
      headers = list("Content-Type" = "application/json", "Connection" = "close", "Cache-Control" = "no-store"),
      body = sprintf('{"worker":%d}', Sys.getpid())
    )
  }
  url <- session$registerDataObj("test", NULL, answer)
  session$sendCustomMessage("sticky-test", list(url = url, worker = Sys.getpid()))
}

shinyApp(ui, server)
