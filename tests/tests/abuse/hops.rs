//! Headers between homing and its neighbours, switched protocols, expectations, and who the client is.

use super::row::{Row, answered, get, passed, post};

pub fn rows() -> Vec<Row> {
    vec![
        passed("Connection lists Host", get("Connection: keep-alive, Host\r\n")).has(&["Host: a"]),
        passed("Connection lists Cookie", get("Connection: Cookie\r\nCookie: a=1\r\n")).has(&["Cookie: a=1"]),
        passed("Connection lists Authorization", get("Connection: authorization\r\nAuthorization: Basic x\r\n"))
            .has(&["Authorization: Basic x"]),
        passed("Connection lists Content-Length", post("Connection: content-length\r\nContent-Length: 3\r\n", "abc"))
            .body("abc"),
        passed(
            "Connection lists Transfer-Encoding",
            post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
        )
        .body("abc"),
        passed("Connection lists X-Forwarded-For", get("Connection: X-Forwarded-For, X-Forwarded-Proto, Forwarded\r\n"))
            .has(&["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"]),
        passed("Connection lists a header of its own", get("Connection: X-Mine\r\nX-Mine: 1\r\n"))
            .lacks(&["x-mine", "connection"]),
        passed("Connection lists nonsense", get("Connection: , ;, \"x\", a b,,\r\n")).lacks(&["connection"]),
        passed("two Connection lines", get("Connection: X-Mine\r\nConnection: keep-alive\r\nX-Mine: 1\r\n"))
            .lacks(&["x-mine", "connection"]),
        passed("headers between neighbours", {
            get("Keep-Alive: timeout=99\r\nProxy-Connection: close\r\nProxy-Authorization: Basic x\r\nTE: gzip\r\n")
        })
        .lacks(&["keep-alive", "proxy-connection", "proxy-authorization", "te"]),
        passed("TE: trailers", get("Connection: TE\r\nTE: trailers, gzip\r\n")).has(&["TE: trailers"]),
        passed("Trailer without chunks", get("Trailer: X-Sum\r\n")),
        passed("Proxy, which CGI reads as http_proxy", get("Proxy: http://evil/\r\n")).lacks(&["proxy"]),
        passed("Upgrade without Connection", get("Upgrade: websocket\r\n")).lacks(&["upgrade", "connection"]),
        passed("Connection: upgrade without Upgrade", get("Connection: upgrade\r\n")).lacks(&["connection"]),
        passed("h2c", get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"))
            .lacks(&["upgrade", "http2-settings", "connection"]),
        passed("h2c among others", get("Connection: Upgrade\r\nUpgrade: x, h2c\r\n")).lacks(&["upgrade"]),
        passed("h2c without its settings", get("Connection: Upgrade\r\nUpgrade: H2C\r\n")).lacks(&["upgrade"]),
        passed("HTTP2-Settings alone", get("HTTP2-Settings: AAMAAABk\r\n")).lacks(&["http2-settings"]),
        answered("a WebSocket without a key", 400, get("Connection: Upgrade\r\nUpgrade: websocket\r\n")),
        passed("an upgrade that the worker declines", {
            get("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                 Sec-WebSocket-Version: 13\r\n")
        })
            .has(&["Upgrade: websocket", "Connection: upgrade"]),
        passed("an upgrade in HTTP/1.0", {
            "GET /x HTTP/1.0\r\nHost: a\r\nConnection: Upgrade, keep-alive\r\nUpgrade: x\r\n\r\n"
        })
        .lacks(&["upgrade"]),
        answered("an upgrade with a body", 400, {
            post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n", "abc")
        }),
        answered("an upgrade with chunks", 400, {
            post("Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")
        }),
        answered("an unknown expectation", 417, get("Expect: cake\r\n")),
        answered("100-continue and another expectation", 417, get("Expect: 100-continue, cake\r\n")),
        answered("two expectations", 417, get("Expect: 100-continue\r\nExpect: cake\r\n")),
        passed("100-continue without a body", get("Expect: 100-continue\r\n")).lacks(&["expect"]),
        passed("100-continue in HTTP/1.0", {
            "POST /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"
        })
        .lacks(&["expect"])
        .body("abc"),
        passed("addresses that the client claims", {
            get("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                 X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /e\r\n")
        })
        .has(&["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a"])
        .lacks(&["6.6.6.6", "7.7.7.7", "evil", "x-real-ip", "x-forwarded-port", "x-forwarded-prefix"]),
        passed("addresses with underscores", get("X_Forwarded_For: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\n"))
            .lacks(&["6.6.6.6"]),
        passed("addresses by other names", get("True-Client-IP: 6.6.6.6\r\nX-Client-IP: 6.6.6.6\r\nClient-IP: 6.6.6.6\r\n")),
        passed("a request's id of the client's making", get("X-Request-ID: mine\r\n")).lacks(&["mine"]),
        passed("Range and If-Range", get("Connection: Range, If-Range\r\nRange: bytes=0-1\r\nIf-Range: \"x\"\r\n"))
            .has(&["Range: bytes=0-1", "If-Range: \"x\""]),
        passed("many ranges are the app's", get("Range: bytes=0-,0-,0-,0-,0-,0-\r\n"))
            .has(&["Range: bytes=0-,0-,0-,0-,0-,0-"]),
        passed("another method in a header is the app's", get("X-HTTP-Method-Override: DELETE\r\n"))
            .has(&["X-HTTP-Method-Override: DELETE"]),
    ]
}
