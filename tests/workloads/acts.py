"""Acts that are easy to record wrongly. Prints one JSON object: of each act the process that did
it and what has to be recorded. Usage: acts.py FOLDER"""

import ctypes
import json
import os
import select
import socket
import sys
import threading

FOLDER = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
ACTS = {}


def act(function):
    """Runs the act in a process of its own; what it returns is its truth."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        truth = function()
        os.write(writer, json.dumps(truth).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    _, status = os.waitpid(pid, 0)
    ACTS[function.__name__] = {"pid": pid, "status": status, "truth": json.loads(text or "null")}


def datagrams(count):
    found = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for one in found:
        one.bind(("127.0.0.1", 0))
    return found, [one.getsockname()[1] for one in found]


@act
def a_datagram_socket_connects_anew():
    _, (first, second) = held = datagrams(2)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(("127.0.0.1", first))
    client.send(b"a" * 10)
    client.connect(("127.0.0.1", second))
    client.send(b"b" * 1000)
    return {first: 10, second: 1000} if held else None


@act
def a_connected_datagram_socket_sends_elsewhere():
    _, (first, second) = held = datagrams(2)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(("127.0.0.1", first))
    client.send(b"a" * 10)
    client.sendto(b"b" * 2000, ("127.0.0.1", second))
    client.sendto(b"c" * 5, ("127.0.0.1", first))
    return {first: 15, second: 2000} if held else None


@act
def a_refused_socket_connects_elsewhere():
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    refused = closed.getsockname()[1]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    client = socket.socket()
    try:
        client.connect(("127.0.0.1", refused))
    except ConnectionRefusedError:
        pass
    client.connect(("127.0.0.1", port))
    client.send(b"x" * 3000)
    return {refused: 0, port: 3000}


@act
def a_socket_whose_attempt_failed_later_connects_elsewhere():
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    refused = closed.getsockname()[1]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", refused))
    select.select([], [client], [])
    # The next call only tells of the failure.
    client.connect_ex(("127.0.0.1", refused))
    client.setblocking(True)
    client.connect(("127.0.0.1", port))
    client.close()
    return {refused: False, port: True}


@act
def an_attempt_to_connect_is_given_up():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # Room for one that nobody accepts: who comes then gets no answer.
    listener.listen(0)
    port = listener.getsockname()[1]
    first = socket.create_connection(("127.0.0.1", port))
    later = socket.socket()
    later.setblocking(False)
    later.connect_ex(("127.0.0.1", port))
    later.close()
    return {port: 0} if first else None


@act
def a_descriptor_is_given_to_another_file():
    paths = [os.path.join(FOLDER, name) for name in ("given", "taken")]
    first, second = (os.open(path, os.O_WRONLY | os.O_CREAT) for path in paths)
    os.write(first, b"1")
    os.dup2(second, first)
    os.write(first, b"22")
    return paths[0]


@act
def a_descriptor_is_closed_by_range_and_used_again():
    path = os.path.join(FOLDER, "ranged")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"1")
    LIBC.close_range(descriptor, descriptor, 0)
    one, other = socket.socketpair()
    one.send(b"s" * 1000)
    return {"path": path, "written": 1} if other else None


@act
def a_program_in_a_jail_climbs():
    jail = os.path.join(FOLDER, "jail")
    os.mkdir(jail)
    os.chroot(jail)
    os.chdir("/")
    os.mkdir("/../../inside")
    os.mkdir("../../also")
    return [jail + "/inside", jail + "/also"]


@act
def a_directory_is_too_deep_to_be_walked():
    os.chdir(FOLDER)
    for step in range(40):
        os.mkdir(f"d{step:02}")
        os.chdir(f"d{step:02}")
    os.mkdir("leaf")
    return "leaf"


@act
def a_name_starts_nowhere():
    LIBC.mkdirat(9999, b"nowhere", 0o755)
    return "nowhere"


@act
def a_directory_is_removed_by_unlinkat():
    path = os.path.join(FOLDER, "removed")
    os.mkdir(path)
    LIBC.unlinkat(-100, path.encode(), 0x200)
    return path


@act
def sockets_are_shut_down_again_and_again():
    one, other = socket.socketpair()
    for _ in range(5):
        one.shutdown(socket.SHUT_RD)
    return 5 if other else None


def leader_ends_first():
    """The first thread ends, a later one ends the process with a code of its own."""
    threading.Thread(target=lambda: (os.read(gate, 1), os._exit(7))).start()
    os.write(push, b"x")
    LIBC.pthread_exit(None)


gate, push = os.pipe()
leader = os.fork()
if leader == 0:
    leader_ends_first()
_, status = os.waitpid(leader, 0)
ACTS["the_first_thread_ends_before_the_process"] = {"pid": leader, "status": status, "truth": 7 << 8}

print(json.dumps(ACTS))
