"""A worker with a family: a pool of processes and a daemon that has cut every tie to it. Says who and how it is."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def nap(_):
    time.sleep(0.2)
    return os.getpid()


def daemon(clean):
    """Forked twice, in a session of its own; with `clean` nothing in its environment tells whose it is."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            os.close(write)
            os.execve("/bin/sleep", ["sleep", "1000"], {} if clean else os.environ)
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as end:
        return int(end.read())


def eat(megabytes):
    block = bytearray(megabytes << 20)
    for at in range(0, len(block), 4096):
        block[at] = 1
    return block


def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return error.strerror
    except Exception as error:
        return repr(error)


def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)


def getfd(pid):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    if libc.syscall(438, pidfd, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def trace(pid):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    PTRACE_SEIZE = 0x4206
    if libc.ptrace(PTRACE_SEIZE, pid, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def status_lines(*names):
    with open("/proc/self/status") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    return {name: lines[name].strip() for name in names}


def about():
    umask = os.umask(0)
    os.umask(umask)
    limit = lambda what: list(resource.getrlimit(what))
    return {
        "environment": dict(ENVIRONMENT),
        "fds": {fd: target for fd, target in FDS.items()},
        "uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()),
        "umask": f"{umask:04o}", "cwd": os.getcwd(), "sid": os.getsid(0), "pid": os.getpid(),
        "limits": {"open_files": limit(resource.RLIMIT_NOFILE), "processes": limit(resource.RLIMIT_NPROC),
                   "core": limit(resource.RLIMIT_CORE)},
        "status": STATUS,
    }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        route, _, argument = self.path[1:].partition("/")
        body = {}
        if route == "family":
            body = {"pid": os.getpid(), "pool": POOL_PIDS, "daemon": DAEMON}
        elif route == "about":
            body = about()
        elif route == "eat":
            KEPT.append(eat(int(argument)))
        elif route == "child-eats":
            ended = subprocess.run([sys.executable, __file__, "eat", argument]).returncode
            body = {"ended": ended}
        elif route == "reach":
            pid, where = argument.split("/", 1)
            pid, where = int(pid), "/" + where
            body = {
                "connect": attempt(lambda: connect(where + "/control.sock")),
                "state": attempt(lambda: os.listdir(where + "/state")),
                "key": attempt(lambda: open(where + "/state/cookie.key")),
                "log": attempt(lambda: os.listdir(where + "/log")),
                "own log": attempt(lambda: open(where + "/log/odd-0.log")),
                "trace": attempt(lambda: trace(pid)),
                "getfd": attempt(lambda: getfd(pid)),
                "memory": attempt(lambda: open(f"/proc/{pid}/mem", "rb")),
                "fds": attempt(lambda: os.listdir(f"/proc/{pid}/fd")),
                "environment": attempt(lambda: open(f"/proc/{pid}/environ")),
                "signal": attempt(lambda: os.kill(pid, 0)),
            }
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if sys.argv[1] == "eat":
        eat(int(sys.argv[2]))
        sys.exit(0)
    KEPT, DAEMON, POOL_PIDS = [], None, []
    STATUS = status_lines("SigBlk", "SigIgn", "CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd", "NoNewPrivs", "Seccomp")
    ENVIRONMENT = dict(os.environ)
    FDS = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            FDS[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass
    kind = sys.argv[2] if len(sys.argv) > 2 else ""
    if kind.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "deaf-but-int":
        signal.signal(signal.SIGINT, lambda *_: (print("asked by SIGINT", flush=True), os._exit(0)))
    if kind == "slow":
        def leave(*_):
            time.sleep(0.5)
            print("left in peace", flush=True)
            os._exit(0)
        signal.signal(signal.SIGTERM, leave)
    if kind in ("family", "marked"):
        DAEMON = daemon(kind == "family")
        POOL = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
        list(POOL.map(nap, range(2)))
        POOL_PIDS = sorted(POOL._processes)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
