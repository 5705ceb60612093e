//! A small world for tests: real workers on loopback, a snapshot made by hand, a proxy between them and raw clients.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lb_common::abi::{BackendId, Service, Slot};
use lb_common::maglev::{self, Member};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{CookieKeys, Counter, Listener, Proxy, Shutdown};
use crate::access;
use crate::address::Address;
use crate::bindings::MemoryBindings;
use crate::config::{Affinity, Route};
use crate::routing::{AppRoute, Door, Notice, RoutingHandle, Snapshot, WorkerRoute};
use crate::spans;
use crate::tls::testing::{Files, Pair};
use crate::tls::{self, Certificate, Tickets};

/// Whatever a test waits for happens at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Waits until a condition that nothing announces holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A worker that answers with its number and what it was sent, echoes WebSocket messages, and counts connections.
pub struct Worker {
    pub route: WorkerRoute,
    pub connections: Arc<AtomicUsize>,
}

pub async fn worker(number: u32) -> Worker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = worker_at(number, listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(number, request).await) });
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { drop(served.with_upgrades().await) });
        }
    });
    Worker { route, connections }
}

pub async fn workers(count: u32) -> Vec<Worker> {
    let mut all = Vec::new();
    for number in 0..count {
        all.push(worker(number).await);
    }
    all
}

/// A worker's route without a worker: nobody listens there unless the test does.
pub fn worker_at(number: u32, address: impl Into<Address>) -> WorkerRoute {
    WorkerRoute {
        number,
        backend: BackendId::new(number, 1),
        incarnation: 1000 + u64::from(number),
        draining: false,
        room: u32::MAX,
        address: address.into(),
        load: Arc::default(),
    }
}

/// An address that refuses connections.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A worker of raw bytes: `answer(connection, request)`, both counted from 0; nothing to say means hanging up.
pub async fn raw_worker(
    number: u32,
    answer: impl Fn(usize, usize) -> &'static str + Send + Sync + 'static,
) -> WorkerRoute {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = worker_at(number, listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                for request in 0.. {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let bytes = answer(connection, request);
                    if bytes.is_empty() || stream.write_all(bytes.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    route
}

async fn answer(number: u32, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    if let Some(key) = request.headers().get("sec-websocket-key") {
        let accept = derive_accept_key(key.as_bytes());
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = TokioIo::new(upgraded.await.unwrap());
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                if !message.is_close() && socket.send(message).await.is_err() {
                    break;
                }
            }
        });
        let response =
            Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("sec-websocket-accept", accept);
        return response.header(CONNECTION, "upgrade").header(UPGRADE, "websocket").body(Full::default()).unwrap();
    }
    let mut text = format!("worker {number}\n{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    text += &format!("body {:?}\n", String::from_utf8_lossy(&body));
    let response = Response::builder().header("x-hop", "1").header(CONNECTION, "x-hop").header("x-kept", "1");
    response.body(Full::from(text)).unwrap()
}

pub fn route(affinity: Affinity, workers: Vec<WorkerRoute>) -> AppRoute {
    let members: Vec<_> = workers
        .iter()
        .filter(|w| !w.draining)
        .map(|w| Member { name: u64::from(w.number), backend: w.backend, weight: 1 })
        .collect();
    let owners = maglev::fill(509, &members);
    AppRoute {
        name: "sales".into(),
        app: 0,
        affinity,
        protect: None,
        send_proxy: None,
        cookie: Arc::default(),
        http: Arc::default(),
        hold: PATIENCE,
        service: Service {
            seed: 1,
            ring_len: 509,
            v4_bits: 128,
            v6_bits: 64,
            affinity_s: 60,
            promote_above: 16,
            ..Service::default()
        },
        ring: owners.into_iter().map(|current| Slot { current, previous: BackendId::NONE }).collect(),
        workers,
        may_grow: true,
        failed: None,
        times: Arc::default(),
    }
}

pub fn routes(workers: &[Worker]) -> Vec<WorkerRoute> {
    workers.iter().map(|worker| worker.route.clone()).collect()
}

pub struct World {
    pub proxy: Proxy,
    pub address: SocketAddr,
    notices: Mutex<mpsc::Receiver<Notice>>,
    pub shutdown: watch::Sender<Shutdown>,
    pub bindings: Arc<MemoryBindings>,
    pub served: JoinHandle<std::io::Result<()>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// One app on a listener of its own.
pub async fn world(route: AppRoute) -> World {
    world_of(&[Route::default()], vec![route]).await
}

/// Apps on one listener, each with its route there.
pub async fn world_of(routes: &[Route], apps: Vec<AppRoute>) -> World {
    world_told(routes, apps, None, None).await
}

/// The same, with an access log, or with spans.
pub async fn world_told(
    routes: &[Route],
    apps: Vec<AppRoute>,
    access: Option<&access::Settings>,
    traces: Option<&spans::Settings>,
) -> World {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (snapshots, receiver) = watch::channel(Arc::new(picture(address, routes, apps)));
    let (sender, notices) = mpsc::channel(64);
    let notices = Mutex::new(notices);
    let bindings = Arc::new(MemoryBindings::new());
    let routing = RoutingHandle { snapshots: receiver, notices: sender, bindings: bindings.clone() };
    let proxy = Proxy::new(routing, CookieKeys::new([7; 32], None), access, traces).unwrap();
    let (shutdown, told) = watch::channel(Shutdown::Serving);
    let served = tokio::spawn(proxy.clone().serve(Listener { address, socket }, told));
    World { proxy, address, notices, shutdown, bindings, served, snapshots }
}

fn picture(address: SocketAddr, routes: &[Route], apps: Vec<AppRoute>) -> Snapshot {
    let door = Door::new(apps.iter().map(|app| app.app).zip(routes), true);
    let apps = apps.into_iter().map(|app| (app.app, Arc::new(app))).collect();
    Snapshot { apps, doors: Arc::new([(address, Arc::new(door))].into()), ..Snapshot::default() }
}

impl World {
    /// What control publishes next.
    pub fn publish(&self, route: AppRoute) {
        self.publish_all(&[Route::default()], vec![route]);
    }

    pub fn publish_all(&self, routes: &[Route], apps: Vec<AppRoute>) {
        self.snapshots.send_replace(Arc::new(picture(self.address, routes, apps)));
    }

    /// From now on clients come by TLS, to these certificates.
    pub fn encrypt(&self, routes: &[Route], apps: Vec<AppRoute>, pairs: &[&Pair], tickets: &Tickets) {
        let load = |pair: &&Pair| Arc::new(Certificate::load(&Files::new(pair).tls()).unwrap());
        let tls = tls::server(&pairs.iter().map(load).collect::<Vec<_>>(), tickets);
        let door = Door::new(apps.iter().map(|app| app.app).zip(routes), true).with_tls(Some(tls));
        self.publish_door(door, apps, &[]);
    }

    /// This door, and these proxies trusted.
    pub fn publish_door(&self, door: Door, apps: Vec<AppRoute>, trusted: &[&str]) {
        let apps = apps.into_iter().map(|app| (app.app, Arc::new(app))).collect();
        let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let doors = Arc::new([(self.address, Arc::new(door))].into());
        self.snapshots.send_replace(Arc::new(Snapshot { apps, doors, trusted }));
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.proxy.counters().get(counter)
    }

    pub async fn notice(&self) -> Notice {
        soon("a notice to control", async { self.notices.lock().await.recv().await }).await.unwrap()
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends raw bytes and returns all that comes back until the end of the connection.
    pub async fn raw(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end too: the proxy may close with some of a bad request unread.
        drop(soon("an answer", stream.read_to_end(&mut answer)).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// GET of `/` with these header lines, on a connection of its own.
    pub async fn get(&self, headers: &str) -> Answer {
        let text = self.raw(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n")).await;
        Answer(text)
    }

    /// The peer address that the test's requests come from.
    pub fn client(&self) -> IpAddr {
        self.address.ip()
    }
}

pub struct Answer(pub String);

impl Answer {
    pub fn status(&self) -> u16 {
        self.0.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no answer: {:?}", self.0))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let head = self.0.split("\r\n\r\n").next()?;
        let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The `Cookie` header line that a browser would send next.
    pub fn cookie(&self) -> Option<String> {
        self.header("set-cookie").map(|cookie| format!("Cookie: {}\r\n", cookie.split(';').next().unwrap()))
    }

    pub fn worker(&self) -> u32 {
        let number = self.0.split("worker ").nth(1).and_then(|rest| rest.lines().next());
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no worker answered: {}", self.0))
    }
}
