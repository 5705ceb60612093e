//! Where a request ends: Content-Length and Transfer-Encoding that contradict each other or say nothing.

use super::row::{Row, chunked, closed, get, passed, post};

pub fn rows() -> Vec<Row> {
    let lengths = |headers: &str| post(headers, "abc");
    let codings = |headers: &str| post(headers, "3\r\nabc\r\n0\r\n\r\n");
    vec![
        closed("CL and TE", 400, codings("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n")),
        closed("TE and CL", 400, codings("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n")),
        closed("TE and a CL of 0", 400, codings("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n")),
        closed("TE and a bad CL", 400, codings("Transfer-Encoding: chunked\r\nContent-Length: x\r\n")),
        closed(
            "CL and TE, a request smuggled in the chunk's place",
            400,
            post(
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            ),
        ),
        closed(
            "CL and TE behind a clean request",
            400,
            codings("Content-Length: 3\r\nTransfer-Encoding: chunked\r\nX-Late: 1\r\n"),
        ),
        closed("two CL, equal", 400, lengths("Content-Length: 3\r\nContent-Length: 3\r\n")),
        closed("two CL, different", 400, lengths("Content-Length: 3\r\nContent-Length: 4\r\n")),
        closed("two CL, equal but for a zero", 400, lengths("Content-Length: 3\r\nContent-Length: 03\r\n")),
        closed("two CL in one line, equal", 400, lengths("Content-Length: 3, 3\r\n")),
        closed("two CL in one line, different", 400, lengths("Content-Length: 3, 4\r\n")),
        closed("two CL in a GET", 400, get("Content-Length: 0\r\nContent-Length: 0\r\n")),
        closed("CL +3", 400, lengths("Content-Length: +3\r\n")),
        closed("CL -1", 400, lengths("Content-Length: -1\r\n")),
        closed("CL 0x3", 400, lengths("Content-Length: 0x3\r\n")),
        closed("CL 3.0", 400, lengths("Content-Length: 3.0\r\n")),
        closed("CL 3e0", 400, lengths("Content-Length: 3e0\r\n")),
        closed("CL 3 3", 400, lengths("Content-Length: 3 3\r\n")),
        closed("CL empty", 400, lengths("Content-Length:\r\n")),
        closed("CL with VT", 400, lengths("Content-Length: \x0b3\r\n")),
        closed("CL of 2^64", 400, lengths("Content-Length: 18446744073709551616\r\n")),
        closed("CL of 2^64 + 3", 400, lengths("Content-Length: 18446744073709551619\r\n")),
        closed("CL of 200 digits", 400, lengths(&format!("Content-Length: {}3\r\n", "0".repeat(199)))),
        passed("CL 003", lengths("Content-Length: 003\r\n")).body("abc"),
        closed("CL with a tab before", 400, lengths("Content-Length:\t3\r\n")),
        closed("CL with a tab behind", 400, lengths("Content-Length: 3\t\r\n")),
        passed("CL with blanks around", lengths("Content-Length:   3  \r\n")).has(&["Content-Length: 3"]).body("abc"),
        passed("CL in a GET, with a request as its body", {
            let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
            get(&format!("Content-Length: {}\r\n", smuggled.len())) + smuggled
        })
        .body("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
        passed("a HEAD with a body", format!("HEAD{}", &lengths("Content-Length: 3\r\n")[4..])).body("abc"),
        closed("chunked twice in one line", 400, codings("Transfer-Encoding: chunked, chunked\r\n")),
        closed(
            "chunked twice in two lines",
            400,
            codings("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ),
        closed("chunked, identity", 400, codings("Transfer-Encoding: chunked, identity\r\n")),
        closed(
            "chunked and identity in two lines",
            400,
            codings("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ),
        closed(
            "identity and chunked in two lines",
            400,
            codings("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
        ),
        closed("identity", 400, lengths("Transfer-Encoding: identity\r\n")),
        closed("identity and CL", 400, lengths("Transfer-Encoding: identity\r\nContent-Length: 3\r\n")),
        closed("gzip, chunked", 400, codings("Transfer-Encoding: gzip, chunked\r\n")),
        closed("gzip", 400, codings("Transfer-Encoding: gzip\r\n")),
        closed("xchunked", 400, codings("Transfer-Encoding: xchunked\r\n")),
        closed("chunked with a parameter", 400, codings("Transfer-Encoding: chunked;q=1\r\n")),
        closed("chunked in quotes", 400, codings("Transfer-Encoding: \"chunked\"\r\n")),
        closed("chunked, and a comma", 400, codings("Transfer-Encoding: chunked,\r\n")),
        closed("a comma, and chunked", 400, codings("Transfer-Encoding: , chunked\r\n")),
        closed("an empty TE", 400, lengths("Transfer-Encoding:\r\n")),
        closed("an empty TE and CL", 400, lengths("Transfer-Encoding:\r\nContent-Length: 3\r\n")),
        closed("chunked behind VT", 400, codings("Transfer-Encoding: \x0bchunked\r\n")),
        closed("chunked behind NBSP", 400, codings("Transfer-Encoding: \u{a0}chunked\r\n")),
        closed("chunked on a folded line", 400, codings("Transfer-Encoding:\r\n chunked\r\n")),
        closed("TE with a blank before the colon", 400, codings("Transfer-Encoding : chunked\r\n")),
        closed("TE on a line that bare CR begins", 400, codings("X: 1\rTransfer-Encoding: chunked\r\n")),
        closed("TE in HTTP/1.0", 400, chunked("3\r\nabc\r\n0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0")),
        passed("TE in capitals", codings("Transfer-Encoding: CHUNKED\r\n")).body("abc"),
        passed("chunked behind blanks", codings("Transfer-Encoding:  chunked  \r\n")).body("abc"),
        closed("chunked behind a tab", 400, codings("Transfer-Encoding:\tchunked\r\n")),
        passed("TE with an underscore is no TE", get("Transfer_Encoding: chunked\r\n"))
            .lacks(&["transfer_encoding", "transfer-encoding"]),
        passed("CL with an underscore is no CL", get("Content_Length: 77\r\n"))
            .lacks(&["content_length", "content-length"]),
    ]
}
