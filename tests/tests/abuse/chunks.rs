//! Chunked bodies: sizes, extensions, ends and trailers.

use super::row::{Row, chunked, closed, passed, post};

pub fn rows() -> Vec<Row> {
    vec![
        passed("chunks", chunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).body("abcde"),
        passed("sizes in capitals and with zeros", chunked("00A\r\nabcdefghij\r\n000\r\n\r\n")).body("abcdefghij"),
        passed("an extension", chunked("3;name=value\r\nabc\r\n0;x\r\n\r\n")).body("abc"),
        closed("a size of 17 digits", 400, chunked("fffffffffffffffff\r\nabc\r\n0\r\n\r\n")),
        closed("a size that wraps to 3", 400, chunked("10000000000000003\r\nabc\r\n0\r\n\r\n")),
        closed("a size of 100 digits", 400, chunked(&format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(99)))),
        closed("a negative size", 400, chunked("-3\r\nabc\r\n0\r\n\r\n")),
        closed("a size with a plus", 400, chunked("+3\r\nabc\r\n0\r\n\r\n")),
        closed("a size with 0x", 400, chunked("0x3\r\nabc\r\n0\r\n\r\n")),
        closed("a size with an underscore", 400, chunked("0_3\r\nabc\r\n0\r\n\r\n")),
        closed("no size", 400, chunked("\r\nabc\r\n0\r\n\r\n")),
        closed("a blank before the size", 400, chunked(" 3\r\nabc\r\n0\r\n\r\n")),
        closed("a word for a size", 400, chunked("three\r\nabc\r\n0\r\n\r\n")),
        closed("an extension without a size", 400, chunked(";x\r\nabc\r\n0\r\n\r\n")),
        closed("two sizes in a line", 400, chunked("3 4\r\nabc\r\n0\r\n\r\n")),
        closed("a size that LF alone ends", 400, chunked("3\nabc\r\n0\r\n\r\n")),
        closed("a size that CR alone ends", 400, chunked("3\rabc\r\n0\r\n\r\n")),
        closed("an extension that LF alone ends", 400, chunked("3;x\nabc\r\n0\r\n\r\n")),
        closed("an extension with CR in it", 400, chunked("3;x\ry\r\nabc\r\n0\r\n\r\n")),
        closed("a quoted extension with a line's end in it", 400, chunked("3;x=\"\r\n0\"\r\n\r\nabc\r\n0\r\n\r\n")),
        closed("an extension of 20 KB", 400, chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(20 * 1024)))),
        closed("20 KB of extensions in all", 400, {
            let chunk = format!("1;{}\r\na\r\n", "x".repeat(1024));
            chunked(&format!("{}0\r\n\r\n", chunk.repeat(20)))
        }),
        closed("data longer than its size", 400, chunked("3\r\nabcd\r\n0\r\n\r\n")),
        closed("data without CRLF", 400, chunked("3\r\nabc0\r\n\r\n")),
        closed("data that LF alone ends", 400, chunked("3\r\nabc\n0\r\n\r\n")),
        closed("data that CR alone ends", 400, chunked("3\r\nabc\r0\r\n\r\n")),
        closed("a last chunk that LF alone ends", 400, chunked("3\r\nabc\r\n0\n\n")),
        closed("an end that LF alone ends", 400, chunked("3\r\nabc\r\n0\r\n\n")),
        closed("no chunks at all", 400, chunked("xyz\r\n\r\n")),
        passed(
            "a trailer",
            post("Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", "3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"),
        )
        .has(&["x-sum: 7"])
        .body("abc"),
        passed("a trailer that frames", {
            let headers = "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n";
            post(headers, "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n")
        })
        .lacks(&["Content-Length: 5", "content-length: 5"])
        .body("abc"),
        passed("a trailer that chunks", {
            post(
                "Transfer-Encoding: chunked\r\nTrailer: Transfer-Encoding\r\n",
                "3\r\nabc\r\n0\r\nTransfer-Encoding: identity\r\n\r\n",
            )
        })
        .lacks(&["identity"])
        .body("abc")
        .although("haproxy", "the trailer is dropped, as RFC 9110 section 6.5.1 has it; HAProxy would pass others on"),
        passed("a trailer that names a host", {
            post("Transfer-Encoding: chunked\r\nTrailer: Host\r\n", "3\r\nabc\r\n0\r\nHost: evil\r\n\r\n")
        })
        .has(&["Host: a"])
        .lacks(&["evil"])
        .body("abc"),
        passed("a trailer that speaks for another", {
            let headers = "Transfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n";
            post(headers, "3\r\nabc\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
        })
        .lacks(&["6.6.6.6"])
        .has(&["X-Forwarded-For: 127.0.0.1"])
        .body("abc"),
        closed("a trailer without a colon", 400, chunked("3\r\nabc\r\n0\r\nnonsense\r\n\r\n")),
        closed("a trailer with NUL", 400, chunked("3\r\nabc\r\n0\r\nX: \0\r\n\r\n")),
        closed("a folded trailer", 400, chunked("3\r\nabc\r\n0\r\nX: 1\r\n 2\r\n\r\n")),
        closed("a trailer that LF alone ends", 400, chunked("3\r\nabc\r\n0\r\nX: 1\n\r\n")),
        closed("33 KB of trailers", 400, {
            chunked(&format!("3\r\nabc\r\n0\r\n{}\r\n", format!("X: {}\r\n", "x".repeat(1024)).repeat(33)))
        }),
        closed("101 trailers", 400, chunked(&format!("3\r\nabc\r\n0\r\n{}\r\n", "X: 1\r\n".repeat(101)))),
    ]
}
