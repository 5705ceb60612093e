//! Every bound of the HTTP path, with its unit. A request's hold is the app's own setting.

use std::time::Duration;

use crate::config::http;

/// Connections of one listener at once; more wait in the kernel's accept queue.
pub const CONNECTIONS_MAX: usize = http::CONNECTIONS_MAX as usize;
/// Pause after `accept`, or a connection to a worker, failed for want of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A request's head must be complete within this. It also bounds how long a kept-alive connection may idle.
pub const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's or response's head; beyond it 431.
pub const HEAD_BYTES_MAX: usize = http::HEAD_BYTES_MAX as usize;
/// Header lines of a request or response; beyond it 431. It is hyper's own default: said again, it would be an allocation
/// for every head.
pub const HEADERS_MAX: usize = 100;
/// Read buffer of one connection, in bytes.
pub const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Bytes behind a request of HTTP/1.1 that are read before it is answered, beyond those that came with it. Of a client who
/// sends more it is not seen whether he is still there.
pub const PIPELINED_BYTES_MAX: usize = 8 * 1024;
/// Probing of a silent peer, so that a client that vanished does not hold its tunnel for ever.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// A client that takes nothing of what waits for it is given up after this; without it a client that keeps its window shut
/// would hold its worker's answer for ever (TCP_USER_TIMEOUT, tcp(7); by HTTP/2 it may keep a single stream's shut). Not before
/// the kernel gives up one that is silent.
pub const CLIENT_STALL: Duration = Duration::from_secs(15 * 60);

/// Between warnings of connections that are refused for their PROXY header.
pub const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);
/// A PROXY header must be complete within this.
pub const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a PROXY header of version 2 after its first sixteen: addresses, and what proxies add to them.
pub const PROXY_HEADER_BYTES_MAX: usize = 4_096;
/// Clients that one connection of a trusted proxy counts for at once; beyond it the one that came first is let go.
pub const CLIENTS_OF_A_PROXY_MAX: usize = 64;
/// A TLS handshake must be over within this, from the connection's beginning, its wait for others included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS handshakes under way at once, over all listeners.
pub const HANDSHAKES_MAX: usize = 4_096;
/// Of these of one client, who may be a whole school.
pub const HANDSHAKES_OF_A_CLIENT_MAX: usize = 256;
/// And no more of them than this part of the room that is left for all: where many clients begin handshakes and do not go on,
/// who begins few finds room ("Dynamic queue length thresholds for shared-memory packet switches", Choudhury and Hahne 1998).
pub const HANDSHAKES_OF_A_CLIENT_PART: usize = 8;
/// For a client who came to a TLS port without TLS: how long, and how much, is read of its request after the answer.
pub const LINGER: Duration = Duration::from_secs(2);
pub const LINGER_BYTES_MAX: u64 = 256 * 1024;

/// Streams of an HTTP/2 connection at once.
pub const H2_STREAMS_MAX: u32 = 128;
/// Streams that a client may have reset before homing has looked at them; beyond it the connection is closed (rapid reset,
/// CVE-2023-44487).
pub const H2_PENDING_RESETS_MAX: usize = 20;
/// Streams of a connection that homing may have reset for the client's errors; beyond it the connection is closed.
pub const H2_RESETS_MAX: usize = 256;
/// What a client may send of a body, and of all bodies of its connection, before a worker has taken it.
pub const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
pub const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What of an answer waits for the client, per stream.
pub const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Of an answer's last piece, what may wait for a client with nobody looking whether it takes it.
pub const PIECE_FORGOTTEN_MAX: usize = 1024;
/// An HTTP/2 connection is asked whether its client is there this often, and given up when it does not say so in time.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// An HTTP/2 connection on which nothing is asked for so long is ended, its open streams excepted.
pub const H2_IDLE: Duration = Duration::from_secs(120);
/// Between looks at a connection of which one or two bytes have come, where it may be HTTP/2.
pub const PREFACE_PAUSE: Duration = Duration::from_millis(10);

/// Bytes of an answer that are read at a time, as long as it does not fill them; one such buffer per runtime thread, none per
/// connection. Of one that does, [`BUFFER_BYTES_MAX`].
pub const ANSWER_CHUNK_BYTES: usize = 16 * 1024;
/// A chunk's size with its extensions, in bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 4 * 1024;
/// Establishing a connection to a worker.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept per worker.
pub const POOL_IDLE_MAX: usize = 64;
/// An idle connection to a worker is closed after this: below the 5 s after which uvicorn and Node close theirs,
/// so that a request seldom meets a connection that is just being closed.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// An upload that goes on behind its answer is given up when nothing of it was sent for so long: its worker does not read.
pub const UPLOAD_STALL: Duration = Duration::from_secs(60);
/// How often idle connections are looked through.
pub const POOL_SWEEP: Duration = Duration::from_secs(2);

/// Requests held for a worker at once, over all apps; beyond it, and beyond an app's own bound, 503 at once.
pub const HELD_MAX: usize = http::HELD_MAX as usize;
/// After a worker refused a connection: how long its removal from the snapshot is waited for before the one retry.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// What clients are told to wait after a 503.
pub const RETRY_AFTER_S: u32 = 5;

/// From the 101 to both ends being out of hyper's hands.
pub const HANDOFF_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes copied through a tunnel at a time; one such buffer per thread, none per tunnel.
pub const TUNNEL_CHUNK_BYTES: usize = 16 * 1024;
/// Of these a relay passes on as many of one tunnel before it looks at the others; what has more to say goes to a task of its own.
pub const RELAY_BURST_CHUNKS: usize = 8;
/// Events that a relay asks for at once. Whoever brings or takes a tunnel waits for so many at most.
pub const RELAY_EVENTS: usize = 64;
/// A tunnel of which one direction has ended may live on this long.
pub const TUNNEL_HALF_CLOSED: Duration = Duration::from_secs(60);
/// The parts into which the time after which a silent WebSocket is ended is divided: so exactly it is kept.
pub const SILENCE_PARTS: u32 = 16;
/// How often an open tunnel refreshes its client's binding. Far below any useful affinity timeout.
pub const TUNNEL_REBIND: Duration = Duration::from_secs(60);

/// Bytes at the beginning of a WebSocket in which a Shiny session's id is looked for.
pub const LEARN_BYTES_MAX: usize = 8 * 1024;
/// Messages among them.
pub const LEARN_MESSAGES_MAX: u32 = 4;
/// For how long. Kept to [`TUNNEL_REBIND`], when every tunnel is looked at.
pub const LEARN_TIME: Duration = Duration::from_secs(60);
/// Shiny sessions whose worker is known at once, over all apps; beyond it the one asked for longest ago is forgotten.
pub const SESSIONS_MAX: usize = 100_000;
/// A session is known for this long after its WebSocket has ended: downloads that were begun.
pub const SESSION_LINGER: Duration = Duration::from_secs(60);

/// Connections that one browser opens to one host at once, as all browsers agree on for HTTP/1.1.
pub const PARTY_CONNECTIONS_MAX: usize = 6;
/// Tabs that one browser opens at once, and more.
pub const PARTY_PAGES_MAX: u32 = 32;
/// The same where a proxy hides which connection they came on: ten tabs, and not all who share an address.
pub const PARTY_PAGES_UNSEEN_MAX: u32 = 12;
/// From the head of an answer to the moment when its cookie comes with the browser's next request for a page.
pub const PARTY_LINGER: Duration = Duration::from_secs(1);
/// A page's scripts, images and sockets that come without a cookie are known to be its own for this long.
pub const PARTY_FOLLOWED: Duration = Duration::from_secs(60);
/// Browsers without a cookie that are remembered at once, over all apps; beyond it each request goes for itself.
pub const PARTIES_MAX: usize = 16_384;
/// How often those are looked for, when there are so many, who need not be remembered any more.
pub const PARTIES_SWEEP: Duration = Duration::from_secs(1);
/// Workers that browsers which look the same, behind one address, are remembered to wait for a page from.
pub const PARTIES_OF_A_BROWSER_MAX: usize = 64;

/// Apps of one host whose places fit in one cookie.
pub const COOKIE_PLACES_MAX: usize = 8;
