//! Where a worker or a remote host is reached, and a connection to it. Nothing else needs to know of which kind it is.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::gather::Room;

/// Before a unix socket whose queue is full is tried again: the kernel does not wait for room, as it does with TCP.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of a segment on either side of the HTTP path (TCP_MAXSEG, tcp(7)). The loopback device takes 64 KiB, which is a whole receive window:
/// a sender may find the window of a reader who has taken all a little smaller than its segment, and then waits for a
/// timer of 200 ms. Cables carry less in any case.
pub const SEGMENT_BYTES_MAX: u32 = 16 * 1024;
/// For an answer to the one question that is asked without the runtime.
const PATIENCE: Duration = Duration::from_secs(1);
/// Before a unix socket's path, in `homing status` and the state file.
const UNIX_PREFIX: &str = "unix:";

/// An address that accepts connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Address {
    Tcp(SocketAddr),
    Unix(Arc<Path>),
}

impl Address {
    /// The port, where there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }

    /// What stands for it in the `Host` of a request.
    pub fn host(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Connects, for as long as the caller waits.
    ///
    /// # Errors
    /// When nobody listens there, or it may not be reached.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES_MAX)?;
                let stream = socket.connect(*address).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                    }
                    connected => return connected.map(Stream::Unix),
                }
            },
        }
    }

    /// Whether somebody listens there, who may be too busy to accept.
    pub fn is_listening(&self) -> bool {
        match self {
            Self::Tcp(address) => StdTcpStream::connect_timeout(address, PATIENCE).is_ok(),
            Self::Unix(path) => match connect_at_once(path) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            },
        }
    }

    /// Whether it is a unix socket that nobody has open any more.
    pub fn is_abandoned(&self) -> bool {
        let Self::Unix(path) = self else { return false };
        connect_at_once(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

fn connect_at_once(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = std::net::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix(UNIX_PREFIX) {
            Some(path) => Ok(PathBuf::from(path).into()),
            None => text.parse().map(Self::Tcp),
        }
    }
}

/// A connection to an [`Address`].
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Takes it from the runtime.
    ///
    /// # Errors
    /// When the runtime never watched it.
    pub fn unwatch(self) -> io::Result<Unwatched> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(Unwatched::Tcp),
            Self::Unix(stream) => stream.into_std().map(Unwatched::Unix),
        }
    }

    /// Has the kernel acknowledge now what has come. A peer that writes in pieces and leaves Nagle's algorithm on (RFC 896) holds
    /// the next piece back until then, and of itself the kernel takes up to 40 ms (`TCP_DELACK_MIN`) in the hope of something to send along.
    pub fn acknowledge(&self) {
        if let Self::Tcp(stream) = self {
            // It fails where there is no connection any more, which the next read will tell.
            let _ = rustix::net::sockopt::set_tcp_quickack(stream, true);
        }
    }

    /// Whether nothing has come, nor its end. Costs no call of the kernel while that is so.
    pub fn is_quiet(&self) -> bool {
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut [0]),
            Self::Unix(stream) => stream.try_read(&mut [0]),
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A [`Stream`] that the runtime does not watch. Does not block.
#[derive(Debug)]
pub enum Unwatched {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl Unwatched {
    /// # Errors
    /// When the kernel has no memory to watch it.
    pub fn watch(self) -> io::Result<Stream> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream).map(Stream::Unix),
        }
    }
}

impl AsFd for Unwatched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        if let Some(all) = Room::new().gather(bufs) {
            return self.poll_write(cx, all);
        }
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn what_is_written_down_is_read_back() {
        for text in ["127.0.0.1:4000", "[::1]:4000", "unix:/run/homing/sales-2-0000beef/socket"] {
            let address = Address::try_from(text.to_owned()).expect("an address");
            assert_eq!(address.to_string(), text);
            let written = serde_json::to_string(&address).expect("plain text");
            assert_eq!(serde_json::from_str::<Address>(&written).expect("plain text"), address);
        }
        assert!(Address::try_from("somewhere".to_owned()).is_err());
    }

    #[tokio::test]
    async fn a_unix_socket_is_connected_to_and_read_and_written() {
        let folder = folder();
        let path = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let mut stream = Address::from(path).connect().await.expect("somebody listens");
        let (mut accepted, _) = listener.accept().await.expect("accepted");
        stream.write_all(b"ping").await.expect("written");
        stream.shutdown().await.expect("shut down");
        let mut heard = String::new();
        accepted.read_to_string(&mut heard).await.expect("read");
        assert_eq!(heard, "ping");
    }

    #[tokio::test]
    async fn segments_over_loopback_fit_into_a_window_many_times() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.expect("bound");
        let Ok(Stream::Tcp(near)) = Address::from(listener.local_addr().expect("bound")).connect().await else {
            panic!("somebody listens, by TCP");
        };
        let (far, _) = listener.accept().await.expect("accepted");
        for end in [&near, &far] {
            let segment = SockRef::from(end).tcp_mss().expect("connected");
            assert!(segment <= SEGMENT_BYTES_MAX, "{segment}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for_and_counts_as_listening() {
        let folder = folder();
        let path = folder.path().join("socket");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        socket.bind(&SockAddr::unix(&path).expect("short")).expect("bound");
        // Room for one connection.
        socket.listen(0).expect("it listens");
        let address = Address::from(path.clone());
        let first = address.connect().await.expect("there is room for one");
        connect_at_once(&path).expect_err("the queue is full");
        assert!(address.is_listening());
        let second = tokio::spawn(async move { address.connect().await });
        drop(first);
        let listener = tokio::net::UnixListener::from_std({
            let listener: UnixListener = socket.into();
            listener.set_nonblocking(true).expect("changed");
            listener
        })
        .expect("watched");
        listener.accept().await.expect("the first");
        listener.accept().await.expect("the second, which waited");
        second.await.expect("no panic").expect("connected");
    }

    #[test]
    fn a_socket_that_nobody_has_open_any_more_does_not_listen() {
        let folder = folder();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let address = Address::from(path);
        assert!(!address.is_listening() && address.is_abandoned());
    }
}
