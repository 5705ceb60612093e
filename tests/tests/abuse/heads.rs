//! Header lines: their form, their number, their length, and Host.

use super::row::{Row, answered, closed, get, passed};

/// A GET with these lines in place of its Host.
fn hosted(lines: &str) -> String {
    format!("GET /x HTTP/1.1\r\n{lines}\r\n")
}

pub fn rows() -> Vec<Row> {
    vec![
        closed("CR in a value", 400, get("X: 1\rY: 2\r\n")),
        closed("CR at a value's end", 400, get("X: 1\r\r\n")),
        closed("CR as a line", 400, get("\rX: 1\r\n")),
        closed("NUL in a value", 400, get("X: a\0b\r\n")),
        closed("NUL in a name", 400, get("X\0Y: 1\r\n")),
        closed("BEL in a value", 400, get("X: a\x07b\r\n")),
        closed("DEL in a value", 400, get("X: a\x7fb\r\n")),
        closed("a line that LF alone ends", 400, get("X: 1\nY: 2\r\n")),
        closed("lines that LF alone ends", 400, get("X: 1\r\n").replace("\r\n", "\n")),
        closed("a head that LF alone ends", 400, "GET /x HTTP/1.1\r\nHost: a\r\n\n"),
        closed("a blank before the colon", 400, get("X : 1\r\n")),
        closed("a tab before the colon", 400, get("X\t: 1\r\n")),
        closed("a blank before the first header", 400, "GET /x HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n"),
        closed("a blank before Host", 400, hosted(" Host: a\r\n")),
        closed("a folded value", 400, get("X: 1\r\n 2\r\n")),
        closed("a value folded by a tab", 400, get("X: 1\r\n\t2\r\n")),
        closed("a line of blanks", 400, get("X: 1\r\n  \r\n")),
        closed("a line without a colon", 400, get("nonsense\r\n")),
        closed("an empty name", 400, get(": 1\r\n")),
        closed("a name with a blank", 400, get("X Y: 1\r\n")),
        closed("a name in brackets", 400, get("X(y): 1\r\n")),
        closed("a name with a slash", 400, get("X/Y: 1\r\n")),
        closed("a name with @", 400, get("X@Y: 1\r\n")),
        closed("a name with a quote", 400, get("X\"Y: 1\r\n")),
        closed("a name beyond ASCII", 400, get("X\u{e9}: 1\r\n")),
        passed("a name of odd but allowed characters", get("X!#$%&'*+-.^`|~: 1\r\n")),
        passed("names with underscores are dropped", get("X_Forwarded_For: 6.6.6.6\r\nMy_Name: 1\r\n")).lacks(&[
            "x_forwarded_for",
            "my_name",
            "6.6.6.6",
        ]),
        passed("a value beyond ASCII", get("X: \u{e9}\r\n")).has(&["X: \u{e9}"]),
        passed("an empty value", get("X:\r\n")).has(&["X: "]),
        closed("101 headers", 431, get(&"X: 1\r\n".repeat(100))),
        closed("1000 tiny headers", 431, get(&"a:\r\n".repeat(1000))),
        closed("a head of 33 KB", 431, get(&format!("X: {}\r\n", "x".repeat(1000)).repeat(33))),
        closed("a line of 40 KB", 431, get(&format!("X: {}\r\n", "x".repeat(40 * 1024)))),
        closed("a name of 40 KB", 431, get(&format!("{}: 1\r\n", "x".repeat(40 * 1024)))),
        answered("no Host", 400, hosted("X: 1\r\n")),
        answered("two Hosts", 400, hosted("Host: a\r\nHost: b\r\n")),
        answered("two Hosts, equal", 400, hosted("Host: a\r\nHost: a\r\n")),
        answered("an empty Host", 400, hosted("Host:\r\n")),
        answered("two hosts in one", 400, hosted("Host: a, b\r\n")),
        answered("a comma in a Host", 400, hosted("Host: a,b\r\n")),
        answered("a Host with a path", 400, hosted("Host: a/b\r\n")),
        answered("a Host with a user", 400, hosted("Host: user@a\r\n")),
        answered("a Host with a blank", 400, hosted("Host: a b\r\n")),
        answered("a Host with a tab", 400, hosted("Host: a\tb\r\n")),
        answered("a Host with a quote", 400, hosted("Host: a\"b\r\n")),
        answered("a Host with markup", 400, hosted("Host: <script>\r\n")),
        answered("a Host with a port of letters", 400, hosted("Host: a:x\r\n")),
        answered("a Host with a port beyond 65535", 400, hosted("Host: a:65536\r\n")),
        answered("a Host with two ports", 400, hosted("Host: a:1:2\r\n")),
        answered("a Host of half an IPv6 address", 400, hosted("Host: [::1\r\n")),
        answered("a Host with ..", 400, hosted("Host: ..\r\n")),
        answered("a Host beyond ASCII", 400, hosted("Host: \u{e9}\r\n")),
        passed("an IPv6 Host", hosted("Host: [::1]:80\r\n")),
        passed("no Host in HTTP/1.0", "GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    ]
}
