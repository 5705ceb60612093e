//! Connections by IPv4 in a namespace: whether they were accepted, and what waits for the other end. As `ss` lists them: the
//! kernel leaves out whom it just remembers (TIME_WAIT), who are too many to be read again and again.

use homing_tests::network::Namespace;

/// A connection that is there, and not just remembered or half made.
pub struct Connection {
    pub local_port: u16,
    pub remote_port: u16,
    /// The other end is in 127.0.0.0/8.
    pub is_loopback: bool,
    /// Bytes that the other end has not taken.
    pub waiting: u32,
    /// 0: nobody has accepted it yet.
    pub inode: u64,
}

impl Connection {
    fn parse(line: &str) -> Option<Self> {
        // State, what waits here and there, both ends, and then what `-e` adds.
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |word: &str| word.rsplit_once(':')?.1.parse().ok();
        let remote = *words.get(4)?;
        let inode = words.iter().find_map(|word| word.strip_prefix("ino:"));
        Some(Self {
            local_port: port(words.get(3)?)?,
            remote_port: port(remote)?,
            is_loopback: remote.starts_with("127."),
            waiting: words.get(2)?.parse().ok()?,
            inode: inode.and_then(|inode| inode.parse().ok()).unwrap_or(0),
        })
    }
}

/// All of a namespace.
pub fn connections(machine: &Namespace) -> Vec<Connection> {
    let remembered = ["exclude", "time-wait", "exclude", "syn-recv", "exclude", "listening"];
    let listed = machine.output(&[&["ss", "-4", "-Htne"], &remembered[..]].concat());
    listed.lines().filter_map(Connection::parse).collect()
}

#[test]
fn a_connection_is_read_as_ss_writes_it() {
    let line = "ESTAB 0      42        127.0.0.1:8081       127.0.0.2:54321 uid:1000 ino:4711 sk:1 cgroup:/ <->";
    let connection = Connection::parse(line).expect("whole");
    assert_eq!((connection.local_port, connection.remote_port), (8081, 54321));
    assert_eq!((connection.waiting, connection.inode, connection.is_loopback), (42, 4711, true));
}
