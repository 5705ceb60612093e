//! Scenarios of `listener`.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use super::*;
use crate::worker::Signal;
use crate::worker::testing::{Worker, eventually};

fn listeners(worker: &Worker, count: usize) -> Vec<Listener> {
    let mut found = eventually("listening sockets", || {
        let found = find(&worker.process, worker.port).expect("readable");
        (found.len() >= count).then_some(found)
    });
    found.sort_by_key(|listener| listener.address);
    assert_eq!(found.len(), count, "{found:?}");
    found
}

#[tokio::test]
async fn the_listener_of_a_grandchild_is_found() {
    let worker = Worker::sh("sh -c '$LISTEN 4 & wait' & wait");
    let found = listeners(&worker, 1);
    assert_eq!(found[0].address, SocketAddr::from((Ipv4Addr::LOCALHOST, worker.port)));
    assert_ne!(found[0].pid, worker.process.pid());
    assert!(worker.process.members().expect("readable").contains(&found[0].pid));
    assert!(found[0].takes_ipv4() && !found[0].takes_ipv6());
}

#[tokio::test]
async fn a_dual_stack_listener_is_told_from_one_for_ipv6_only() {
    let dual = Worker::sh("$LISTEN dual");
    let found = listeners(&dual, 1);
    assert_eq!(found[0].address, SocketAddr::from((Ipv6Addr::UNSPECIFIED, dual.port)));
    assert!(!found[0].ipv6_only && found[0].takes_ipv4() && found[0].takes_ipv6());

    let only = Worker::sh("$LISTEN 6");
    let found = listeners(&only, 1);
    assert!(found[0].ipv6_only && !found[0].takes_ipv4() && found[0].takes_ipv6());
}

#[tokio::test]
async fn a_worker_with_two_sockets_on_the_port_yields_both() {
    let worker = Worker::sh("$LISTEN 4 6");
    let found = listeners(&worker, 2);
    assert!(found[0].address.is_ipv4() && found[1].address.is_ipv6(), "{found:?}");
}

#[tokio::test]
async fn a_socket_shared_by_parent_and_child_is_found_once() {
    let worker = Worker::sh(
        "exec python3 -c 'import os,socket,time; s=socket.create_server((\"127.0.0.1\",{port})); os.fork(); time.sleep(1000)'",
    );
    eventually("both processes", || (worker.process.members().expect("readable").len() == 2).then_some(()));
    listeners(&worker, 1);
}

#[tokio::test]
async fn a_stranger_on_the_port_is_not_taken_for_the_worker() {
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let worker = Worker::sh("exec sleep 1000");
    let port = stranger.local_addr().expect("bound").port();
    assert!(find(&worker.process, port).expect("readable").is_empty());
}

#[tokio::test]
async fn a_worker_that_does_not_listen_or_is_gone_has_no_listener() {
    let worker = Worker::sh("exec sleep 1000");
    assert!(find(&worker.process, worker.port).expect("readable").is_empty());
    worker.process.kill_tree(Signal::KILL).expect("killed");
    worker.process.exited().await;
    assert!(find(&worker.process, worker.port).expect("not an error").is_empty());
}

#[tokio::test]
async fn once_the_duplicate_is_dropped_the_socket_dies_with_its_worker() {
    let worker = Worker::sh("exec $LISTEN 4");
    let found = listeners(&worker, 1);
    let address = found[0].address;
    TcpStream::connect(address).expect("it listens");
    worker.process.kill_tree(Signal::KILL).expect("killed");
    worker.process.exited().await;
    TcpStream::connect(address).expect("the duplicate keeps it open");
    drop(found);
    // A process that another test is starting holds a copy of all that is open here, until its exec.
    eventually("the end of the socket", || TcpStream::connect(address).is_err().then_some(()));
}

#[test]
fn the_table_is_read_up_to_the_first_socket_that_does_not_listen() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n\
        1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0\n\
        2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0\n\
        nonsense\n\
        3: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 444 1 0 100 0 0 10 0\n\
        4: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 555 1 0 100 0 0 10 0\n";
    let mut inodes = HashSet::new();
    read_table(table.as_bytes(), Some(8080), &mut inodes).expect("readable");
    assert_eq!(inodes, HashSet::from([111, 222]));
}

#[test]
fn a_lack_of_privilege_says_which() {
    let text = FindError::Privilege { pid: 7 }.to_string();
    assert!(text.contains("process 7") && text.contains("CAP_SYS_PTRACE"), "{text}");
}
