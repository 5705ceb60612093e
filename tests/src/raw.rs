//! A worker and a client of raw bytes. The worker writes down all that it is sent, and reads it as strictly as any server
//! does: what it cannot read in one way only is an error.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::instance::wait_for;

/// The answer of a worker that was told no other. It ends its connection, so that all of it belongs to one request.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// In place of a connection's end that does not come.
pub const ENDLESS: &str = "\n(the connection does not end)";
/// Longer than any proxy here waits for the rest of a head.
const END_MAX: Duration = Duration::from_secs(20);

/// Listens on a loopback port of its own until the test's process ends.
pub struct Worker {
    pub address: SocketAddr,
    talks: Talks,
    special: Special,
}

/// What to say to requests for `/x`, if not [`ANSWER`].
type Special = Arc<Mutex<Option<Answer>>>;

#[derive(Clone)]
pub struct Answer {
    pub bytes: Vec<u8>,
    /// Whether the worker keeps its side of the connection open then, for further requests.
    pub keeps_open: bool,
}

type Talks = Arc<Mutex<Vec<Talk>>>;

/// One connection to the worker.
struct Talk {
    peer: SocketAddr,
    bytes: Vec<u8>,
    has_ended: bool,
}

/// A request as the worker reads it.
#[derive(Debug)]
pub struct Request {
    /// Request line and header lines, joined with `\n`.
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
    /// Not broken off in its body.
    pub is_complete: bool,
}

impl Request {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// `line` without regard to the name's case.
    pub fn has(&self, line: &str) -> bool {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        self.values(name).contains(&value)
    }

    pub fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(has, _)| has.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim_matches(' ')).collect()
    }
}

impl Worker {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let address = listener.local_addr().expect("bound");
        let talks = Talks::default();
        let special = Special::default();
        let (all, said) = (Arc::clone(&talks), Arc::clone(&special));
        std::thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                let mut talks = lock(&all);
                let number = talks.len();
                talks.push(Talk { peer, bytes: Vec::new(), has_ended: false });
                drop(talks);
                let (all, said) = (Arc::clone(&all), Arc::clone(&said));
                std::thread::spawn(move || talk(stream, &all, number, &said));
            }
        });
        Self { address, talks, special }
    }

    /// What to say to requests for `/x` from now on.
    pub fn says(&self, answer: Answer) {
        *lock(&self.special) = Some(answer);
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        lock(&self.talks).len()
    }

    /// Connections to it of which some bytes came and that have not ended.
    pub fn open(&self) -> usize {
        lock(&self.talks).iter().filter(|talk| !talk.bytes.is_empty() && !talk.has_ended).count()
    }

    /// All bytes of all connections since the last time, once all of these have ended.
    pub fn take(&self) -> Vec<Vec<u8>> {
        // Connections are accepted in their order: with this one, all earlier ones have been seen.
        let marker = TcpStream::connect(self.address).expect("the worker listens");
        let own = marker.local_addr().expect("connected");
        drop(marker);
        wait_for("all connections to the worker have ended", || {
            let mut talks = lock(&self.talks);
            let is_over = talks.iter().any(|talk| talk.peer == own) && talks.iter().all(|talk| talk.has_ended);
            // Emptied, not shortened: numbers stay what they are.
            is_over.then(|| talks.iter_mut().map(|talk| std::mem::take(&mut talk.bytes)).collect::<Vec<_>>())
        })
        .into_iter()
        .filter(|bytes| !bytes.is_empty())
        .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the first request, or all where it keeps its connection open, and reads on to the end.
fn talk(mut stream: TcpStream, talks: &Talks, number: usize, special: &Special) {
    let mut buffer = [0; 64 * 1024];
    let mut is_done = false;
    let mut judged = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        let mut all = lock(talks);
        let bytes = &mut all[number].bytes;
        bytes.extend_from_slice(&buffer[..read]);
        let next = read_request(&bytes[judged..]);
        drop(all);
        match next {
            Ok(Some((request, length))) if request.is_complete && !is_done => {
                judged += length;
                let body = if request.head.starts_with("HEAD ") { 0 } else { 2 };
                let plain = Answer { bytes: ANSWER[..ANSWER.len() - 2 + body].to_vec(), keeps_open: false };
                let special = lock(special).clone().filter(|_| request.target() == "/x");
                let answer = special.unwrap_or(plain);
                // The proxy may be gone.
                let _ = stream.write_all(&answer.bytes);
                if !answer.keeps_open {
                    is_done = true;
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
            Ok(_) => {}
            // What a server does that cannot read on; the test reads it again.
            Err(_) => break,
        }
    }
    lock(talks)[number].has_ended = true;
}

/// All requests in what one connection carried.
pub fn requests(mut bytes: &[u8]) -> Result<Vec<Request>, String> {
    let mut all = Vec::new();
    while let Some((request, length)) = read_request(bytes)? {
        bytes = &bytes[length..];
        all.push(request);
    }
    if bytes.is_empty() || all.last().is_some_and(|last| !last.is_complete) {
        return Ok(all);
    }
    Err(format!("{} bytes that are no request: {}", bytes.len(), text(bytes)))
}

/// The first request and its length, if there is one whole head.
fn read_request(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let mut lines = Vec::new();
    for line in text(&bytes[..end]).split("\r\n") {
        if line.contains(['\r', '\n', '\0']) {
            return Err(format!("a control character in {line:?}"));
        }
        lines.push(line.to_owned());
    }
    for line in &lines[1..] {
        let name = line.split(':').next().unwrap_or_default();
        if name == line || name.is_empty() || name.contains([' ', '\t']) {
            return Err(format!("a header line that is none: {line:?}"));
        }
    }
    if lines[0].split(' ').count() != 3 || !lines[0].ends_with(" HTTP/1.1") && !lines[0].ends_with(" HTTP/1.0") {
        return Err(format!("a request line that is none: {:?}", lines[0]));
    }
    let mut request = Request { head: lines.join("\n"), body: Vec::new(), trailers: String::new(), is_complete: false };
    let lengths = request.values("content-length");
    let codings = request.values("transfer-encoding");
    let rest = &bytes[end + 4..];
    let framed = match (&lengths[..], &codings[..]) {
        ([], []) => Some((Vec::new(), 0, String::new())),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| format!("a length of {length}"))?;
            rest.get(..length).map(|body| (body.to_vec(), length, String::new()))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => read_chunks(rest)?,
        _ => return Err(format!("the body's length is not certain: {}", request.head)),
    };
    let length = match framed {
        Some((body, length, trailers)) => {
            (request.body, request.trailers, request.is_complete) = (body, trailers, true);
            length
        }
        None => rest.len(),
    };
    Ok(Some((request, end + 4 + length)))
}

/// The body, its length on the wire and its trailers, if it is all there.
fn read_chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize, String)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = text(&bytes[at..at + line]);
        let size = usize::from_str_radix(&size, 16).map_err(|_| format!("a chunk of {size:?}"))?;
        at += line + 2;
        if size == 0 {
            // Trailers, or nothing, and an empty line.
            let Some(end) = bytes[at - 2..].windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
            return Ok(Some((body, at - 2 + end + 4, text(&bytes[at - 2..at - 2 + end]))));
        }
        let (Some(chunk), Some(end)) = (bytes.get(at..at + size), bytes.get(at + size..at + size + 2)) else {
            return Ok(None);
        };
        if end != b"\r\n" {
            return Err("a chunk that does not end where it should".to_owned());
        }
        body.extend_from_slice(chunk);
        at += size + 2;
    }
}

/// Sends `bytes` and returns all that comes back until the connection's end, with [`ENDLESS`] if it does not end.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // Who refuses need not read it all.
    let _ = stream.write_all(bytes);
    read_to_end(&mut stream)
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(END_MAX)).expect("a timeout");
    stream.set_write_timeout(Some(END_MAX)).expect("a timeout");
    stream
}

pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let is_late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        return if is_late { text(&answer) + ENDLESS } else { text(&answer) };
    }
    text(&answer)
}

/// The statuses of all answers in what a connection carried.
pub fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.split("HTTP/1.").skip(1);
    lines.filter_map(|line| line.get(2..5)?.parse().ok()).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
