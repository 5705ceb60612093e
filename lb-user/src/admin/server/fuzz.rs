//! What the control socket promises of any message: it is answered, and an order that reaches the state is the one that
//! was sent.

use std::convert::Infallible;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Runtime;

use super::*;
use crate::fuzzing::Input;

const ASKED: [(&str, &str); 9] = [
    ("POST", "/v1/order"),
    ("GET", "/v1/status"),
    ("GET", "/v1/trace"),
    ("GET", "/v1/output"),
    ("POST", "/v1/stop"),
    ("POST", "/v1/yield"),
    ("GET", "/v1/handover"),
    ("GET", "/v1/loads"),
    ("GET", "/v1/order"),
];
const BUFFER_BYTES: usize = 64 * 1024;

/// The first byte is what is asked, the first line its query, and the rest its body.
pub fn control(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (method, path) = *input.pick(&ASKED);
    let end = input.0.iter().position(|&byte| byte == b'\n').unwrap_or(input.0.len());
    // What no client's library would send is hyper's to refuse.
    let query: String =
        input.take(end).iter().filter(|byte| byte.is_ascii_graphic()).map(|&byte| char::from(byte)).collect();
    let body = input.0.get(1..).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path}?{query} HTTP/1.1\r\nHost: homing\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    let (answer, orders) = RUNTIME.with(|runtime| runtime.block_on(answered(&[head.as_bytes(), body].concat())));
    let status: u16 = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    assert!(matches!(status, 200 | 202 | 400 | 404 | 405 | 409 | 414 | 422 | 503), "{answer}");
    let sent = (method == "POST" && path == "/v1/order").then(|| serde_json::from_slice::<Order>(body).ok()).flatten();
    assert_eq!(orders, Vec::from_iter(sent.map(|order| format!("{order:?}"))), "{answer}");
    if let Ok(order) = serde_json::from_slice::<Order>(body) {
        let again = serde_json::to_vec(&order).expect("it is JSON");
        let read = serde_json::from_slice::<Order>(&again).expect("as was written");
        assert_eq!(format!("{read:?}"), format!("{order:?}"), "homing's own client sends it so");
    }
}

std::thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// The answer, and the orders that reached the state.
async fn answered(said: &[u8]) -> (String, Vec<String>) {
    let (client, server) = tokio::io::duplex(BUFFER_BYTES);
    let (sender, mut requests) = mpsc::channel(1);
    let serving = tokio::spawn(async move { axum::serve(Only(Some(server)), router(sender)).await });
    let state = tokio::spawn(async move {
        let mut orders = Vec::new();
        while let Some(request) = requests.recv().await {
            match request {
                Request::Order(order, answer) => {
                    orders.push(format!("{order:?}"));
                    drop(answer.send(Ok("done".to_owned())));
                }
                Request::Trace { answer, .. } => drop(answer.send(Err("no such app".to_owned()))),
                Request::Live { answer, .. } => drop(answer.send(Err("too many listen".to_owned()))),
                Request::Output { answer, .. } => drop(answer.send(Ok(Vec::new()))),
                Request::Yield { answer, force } => {
                    drop(answer.send(if force { Ok(Bound::default()) } else { Err("not now".to_owned()) }));
                }
                Request::Loads(answer) => drop(answer.send(Loads { loads: Vec::new() })),
                // Answered 503: only the state could make these up.
                Request::Status(_) | Request::Report(_) | Request::Handover(_) | Request::Stop { .. } => {}
            }
        }
        orders
    });
    let (mut reading, mut writing) = tokio::io::split(client);
    let mut answer = Vec::new();
    // It may be refused before it has been read.
    let _ = tokio::join!(writing.write_all(said), reading.read_to_end(&mut answer));
    serving.abort();
    drop(serving.await);
    (String::from_utf8_lossy(&answer).into_owned(), state.await.expect("it does not panic"))
}

/// A socket to which one client comes.
struct Only(Option<DuplexStream>);

impl axum::serve::Listener for Only {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.take() {
            Some(stream) => (stream, ()),
            None => match std::future::pending::<Infallible>().await {},
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
