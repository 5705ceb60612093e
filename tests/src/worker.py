"""An HTTP worker whose listening sockets come and go.

    worker.py PORT HOST...          listens there; SIGUSR1 closes all and opens them anew, SIGUSR2 opens [::] for IPv6 alone
    worker.py PORT --group COUNT    as many processes, each with a socket of its own (SO_REUSEPORT); one that ends is
                                    followed by another

Answers "PID direct" or "PID forwarded"; prints a line whenever it has begun to listen.
"""

import os
import selectors
import signal
import socket
import sys


def listen(host, port, reuse_port=False):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((host, port))
    s.listen()
    return s


def answer(connection):
    with connection:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = connection.recv(65536)
            if not part:
                return
            head += part
        way = "forwarded" if b"\r\nx-forwarded-for:" in head.lower() else "direct"
        body = f"{os.getpid()} {way}"
        connection.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())


def serve(port, hosts, reuse_port=False):
    selector = selectors.DefaultSelector()
    signalled, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGUSR2, lambda *_: None)
    selector.register(signalled, selectors.EVENT_READ)
    listeners = []

    def open_all(hosts):
        for host in hosts:
            listener = listen(host, port, reuse_port)
            selector.register(listener, selectors.EVENT_READ)
            listeners.append(listener)
        print("listening", flush=True)

    open_all(hosts)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not signalled:
                if key.fileobj in listeners:
                    answer(key.fileobj.accept()[0])
            elif signalled.recv(1)[0] == signal.SIGUSR1:
                while listeners:
                    listener = listeners.pop()
                    selector.unregister(listener)
                    listener.close()
                open_all(hosts)
            else:
                open_all(["::"])


def group(port, count):
    while True:
        for _ in range(count):
            if os.fork() == 0:
                serve(port, ["127.0.0.1"], reuse_port=True)
        count = 1
        os.wait()


if sys.argv[2] == "--group":
    group(int(sys.argv[1]), int(sys.argv[3]))
else:
    serve(int(sys.argv[1]), sys.argv[2:])
