//! Request lines: methods, targets, versions.

use super::row::{Row, answered, closed, passed};

/// A request with this first line.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

pub fn rows() -> Vec<Row> {
    vec![
        answered("a lower-case method", 400, line("get /x HTTP/1.1")),
        answered("a method in mixed case", 400, line("GeT /x HTTP/1.1")),
        closed("no method", 400, line(" /x HTTP/1.1")),
        closed("a method with a slash", 400, line("GE/T /x HTTP/1.1")),
        closed("a method with NUL", 400, line("GE\0T /x HTTP/1.1")),
        answered("TRACE", 405, line("TRACE /x HTTP/1.1")),
        answered("TRACK", 405, line("TRACK /x HTTP/1.1")),
        answered("CONNECT", 501, line("CONNECT b:443 HTTP/1.1")),
        answered("CONNECT to a path", 501, line("CONNECT /x HTTP/1.1")),
        answered("GET of an authority", 400, line("GET a:80 HTTP/1.1")),
        closed("the preface of HTTP/2", 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        answered("OPTIONS *", 204, line("OPTIONS * HTTP/1.1")),
        answered("GET *", 400, line("GET * HTTP/1.1")),
        answered("GET *x", 400, line("GET *x HTTP/1.1")),
        closed("no target", 400, line("GET HTTP/1.1")),
        closed("no version", 400, line("GET /x")),
        closed("HTTP/0.9", 400, "GET /x\r\n\r\n"),
        closed("version 0.9", 400, line("GET /x HTTP/0.9")),
        closed("version 1.2", 400, line("GET /x HTTP/1.2")),
        closed("version 1.10", 400, line("GET /x HTTP/1.10")),
        closed("version 01.1", 400, line("GET /x HTTP/01.1")),
        closed("version 2.0", 400, line("GET /x HTTP/2.0")),
        closed("version 3", 400, line("GET /x HTTP/3")),
        closed("http in small letters", 400, line("GET /x http/1.1")),
        closed("another protocol", 400, line("GET /x SIP/2.0")),
        closed("a word behind the version", 400, line("GET /x HTTP/1.1 x")),
        closed("a blank behind the version", 400, line("GET /x HTTP/1.1 ")),
        closed("tabs between the words", 400, line("GET\t/x\tHTTP/1.1")),
        closed("two blanks before the target", 400, line("GET  /x HTTP/1.1")),
        closed("two blanks before the version", 400, line("GET /x  HTTP/1.1")),
        closed("a first line that LF alone ends", 400, "GET /x HTTP/1.1\nHost: a\r\n\r\n"),
        closed("a first line that CR alone ends", 400, "GET /x HTTP/1.1\rHost: a\r\n\r\n"),
        passed("an empty line before the first", format!("\r\n{}", line("GET /x HTTP/1.1"))),
        answered("a target without a slash", 400, line("GET x HTTP/1.1")),
        closed("a control character in the path", 400, line("GET /x\x01 HTTP/1.1")),
        closed("NUL in the path", 400, line("GET /x\0 HTTP/1.1")),
        closed("DEL in the path", 400, line("GET /x\x7f HTTP/1.1")),
        closed("CR in the path", 400, line("GET /x\ry HTTP/1.1")),
        closed("a blank in the path", 400, line("GET /x y HTTP/1.1")),
        answered("raw UTF-8 in the path", 400, line("GET /\u{e9} HTTP/1.1")),
        answered("raw UTF-8 in the query", 400, line("GET /x?\u{e9} HTTP/1.1")),
        closed("bytes that are no UTF-8 in the path", 400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n".as_slice()),
        closed("a fragment", 400, line("GET /x#y HTTP/1.1")),
        closed("a fragment behind a query", 400, line("GET /x?y#z HTTP/1.1")),
        closed("a path that is a fragment", 400, line("GET # HTTP/1.1")),
        passed("a quote in the path, which some clients do not escape", line("GET /\"x HTTP/1.1")),
        closed("brackets in the path", 400, line("GET /<x> HTTP/1.1")),
        answered("an escaped NUL in the path", 400, line("GET /x%00y HTTP/1.1")),
        answered("an escape of no byte", 400, line("GET /x%zz HTTP/1.1")),
        answered("an escape that is cut off", 400, line("GET /x% HTTP/1.1")),
        passed("an escape of no byte in the query is the app's", line("GET /x?100%&%00 HTTP/1.1")),
        answered("a path above the root", 400, line("GET /../x HTTP/1.1")),
        answered("a path above the root on its way", 400, line("GET /a/../../a/x HTTP/1.1")),
        answered("a path above the root, escaped", 400, line("GET /a%2f.%2e/%2E./x HTTP/1.1")),
        answered("a path above the root behind empty segments", 400, line("GET ///../x HTTP/1.1")),
        passed("dots in the path are the app's", line("GET /a/../x/%2e%2e/%2f?..%00 HTTP/1.1")),
        closed("a URL of 33 KB", 431, line(&format!("GET /{} HTTP/1.1", "x".repeat(33 * 1024)))),
        passed("a URL", line("GET http://a/x HTTP/1.1")).has(&["Host: a"]),
        passed("a URL of another host: the URL counts", line("GET http://b/x HTTP/1.1"))
            .has(&["Host: b", "X-Forwarded-Host: b"])
            .although(
                "haproxy",
                "RFC 9112 section 3.2.2: Host must be ignored then, and the worker sees one host only",
            ),
        answered("a URL with a user", 400, line("GET http://user@a/x HTTP/1.1")),
        answered("a URL of another scheme", 400, line("GET ftp://a/x HTTP/1.1")),
        closed("a URL without a host", 400, line("GET http:///x HTTP/1.1")),
        answered("a URL with a bad port", 400, line("GET http://a:x/ HTTP/1.1")),
        answered("a URL and no Host", 400, "GET http://a/x HTTP/1.1\r\n\r\n"),
        answered("a URL and two Hosts", 400, "GET http://a/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ]
}
