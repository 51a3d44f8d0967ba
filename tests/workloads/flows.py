"""Every way to move bytes through a descriptor, each with its volume. Prints one JSON object: of
each act the process that did it and the flows that have to be recorded. Usage: flows.py FOLDER

A flow is {"fd", "path" or "port", "volume": [reads, bytes read, writes, bytes written], "ops"}; what
is left out is not compared. Its volume is the sum over all records that fit; one without a volume
must not be recorded."""

import ctypes
import fcntl
import json
import mmap
import os
import socket
import struct
import sys

FOLDER = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
# What mmap gives when it fails.
FAILED = (None, ctypes.c_size_t(-1).value)
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


def path(name):
    return os.path.join(FOLDER, name)


def made(name, text):
    """A file with this content, and a descriptor to read it."""
    reader = os.open(path(name), os.O_RDONLY | os.O_CREAT)
    writer = os.open(path(name), os.O_WRONLY)
    os.dup2(writer, 99)
    os.close(writer)
    os.write(99, text)
    os.close(99)
    return reader


def target(name):
    return os.open(path(name), os.O_WRONLY | os.O_CREAT)


def flow(volume, **known):
    return {"volume": volume, **known}


def pipe_name(descriptor):
    return os.readlink(f"/proc/self/fd/{descriptor}")


@act
def sendfile_reads_from_one_and_writes_to_the_other():
    source, one = made("sendfile", b"s" * 9000), target("sent")
    left, right = socket.socketpair()
    done = os.sendfile(one, source, 0, 4000) + os.sendfile(one, source, 4000, 1000)
    to_socket = os.sendfile(left.fileno(), source, 0, 3000)
    try:
        os.sendfile(one, left.fileno(), 0, 10)
    except OSError:
        pass
    right.recv(4000)
    return [
        flow([3, done + to_socket, 0, 0], fd=source),
        flow([0, 0, 3, done], fd=one, path=path("sent")),
        flow([1, 0, 1, to_socket], fd=left.fileno()),
        flow([1, to_socket, 0, 0], fd=right.fileno()),
    ]


@act
def splice_and_tee_and_vmsplice_fill_and_empty_pipes():
    source, sink = made("splice", b"p" * 5000), target("spliced")
    (a, b), (c, d) = os.pipe(), os.pipe()
    first, second = pipe_name(a), pipe_name(c)
    assert os.splice(source, b, 3000) == 3000
    assert LIBC.tee(a, d, 2000, 0) == 2000
    assert os.splice(a, sink, 3000) == 3000
    text = ctypes.create_string_buffer(b"v" * 700, 700)
    vector = struct.pack("PN", ctypes.addressof(text), 700)
    assert LIBC.vmsplice(d, vector, 1, 0) == 700
    room = ctypes.create_string_buffer(2700)
    vector = struct.pack("PN", ctypes.addressof(room), 2700)
    took = LIBC.vmsplice(c, vector, 1, 0)
    return [
        flow([1, 3000, 0, 0], fd=source),
        flow([0, 0, 1, 3000], fd=sink, path=path("spliced")),
        flow([2, 5000, 0, 0], fd=a, path=first),
        flow([0, 0, 1, 3000], fd=b, path=first),
        flow([1, took, 0, 0], fd=c, path=second),
        flow([0, 0, 2, 2700], fd=d, path=second),
    ]


@act
def copy_file_range_copies_between_files():
    source, sink = made("copied", b"c" * 6000), target("copy")
    done = os.copy_file_range(source, sink, 4096)
    done += os.copy_file_range(source, sink, 4096)
    return [
        flow([2, done, 0, 0], fd=source, path=path("copied")),
        flow([0, 0, 2, done], fd=sink, path=path("copy")),
    ]


class Messages:
    """A list of struct mmsghdr, each with one part and, where given, an address."""

    HEADER = "PIPNPNi0PI0P"
    SIZE = struct.calcsize(HEADER)

    def __init__(self, parts, addresses=None):
        self.parts = [ctypes.create_string_buffer(part, len(part)) for part in parts]
        self.vectors = [
            struct.pack("PN", ctypes.addressof(part), len(part)) for part in self.parts
        ]
        addresses = addresses or [b""] * len(parts)
        self.addresses = [ctypes.create_string_buffer(one, len(one)) for one in addresses]
        self.list = ctypes.create_string_buffer(b"".join(
            struct.pack(self.HEADER, *self._name(address), self._part(vector), 1, 0, 0, 0, 0)
            for vector, address in zip(self.vectors, self.addresses)
        ))

    @staticmethod
    def _part(text):
        return ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value

    @staticmethod
    def _name(address):
        return (ctypes.addressof(address), len(address)) if len(address) else (0, 0)


def inet(port):
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, bytes([127, 0, 0, 1]))


@act
def messages_go_over_a_stream_in_one_call():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out = Messages([b"1" * 10, b"2" * 200, b"3" * 3000])
    assert LIBC.sendmmsg(left.fileno(), out.list, 3, 0) == 3
    into = Messages([bytes(4000)] * 4)
    assert LIBC.recvmmsg(right.fileno(), into.list, 4, socket.MSG_DONTWAIT, None) == 3
    assert LIBC.recvmmsg(right.fileno(), into.list, 4, socket.MSG_DONTWAIT, None) == -1
    many = Messages([bytes(4)] * 260)
    assert LIBC.sendmmsg(left.fileno(), many.list, 200, socket.MSG_DONTWAIT) == 200
    received = 0
    while (count := LIBC.recvmmsg(right.fileno(), many.list, 260, socket.MSG_DONTWAIT, None)) > 0:
        received += count
    assert received == 200, received
    return [
        flow([0, 0, 203, 4010], fd=left.fileno()),
        # The two calls that found nothing are one operation each.
        flow([205, 4010, 0, 0], fd=right.fileno()),
    ]


@act
def messages_go_to_many_peers_in_one_call():
    peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(5)]
    for peer in peers:
        peer.bind(("127.0.0.1", 0))
    ports = [peer.getsockname()[1] for peer in peers]
    order = [0, 1, 0, 2, 3, 4, 0]
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    out = Messages([b"x" * (100 + n) for n in range(7)], [inet(ports[n]) for n in order])
    assert LIBC.sendmmsg(server.fileno(), out.list, 7, 0) == 7
    flows = []
    for n, port in enumerate(ports):
        sizes = [100 + i for i, peer in enumerate(order) if peer == n]
        flows.append(flow([0, 0, len(sizes), sum(sizes)], fd=server.fileno(), port=port))
    for n, peer in enumerate(peers):
        peer.sendto(b"y" * (n + 1), server.getsockname())
    into = Messages([bytes(100)] * 5, [bytes(16)] * 5)
    assert LIBC.recvmmsg(server.fileno(), into.list, 5, 0, None) == 5
    for n, one in enumerate(flows):
        one["volume"][0:2] = [1, n + 1]
    return flows


@act
def a_connected_datagram_socket_sends_many():
    peer, client = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2))
    peer.bind(("::1", 0))
    client.connect(peer.getsockname())
    out = Messages([b"x" * 50, b"y" * 60])
    assert LIBC.sendmmsg(client.fileno(), out.list, 2, 0) == 2
    into = Messages([bytes(100)] * 2, [bytes(28)] * 2)
    assert LIBC.recvmmsg(peer.fileno(), into.list, 2, 0, None) == 2
    return [
        flow([0, 0, 2, 110], fd=client.fileno(), port=peer.getsockname()[1]),
        flow([2, 110, 0, 0], fd=peer.fileno(), port=client.getsockname()[1]),
    ]


@act
def a_server_answers_more_peers_than_are_told_apart():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(80)]
    into = Messages([bytes(100)] * 80, [bytes(16)] * 80)
    for n, client in enumerate(clients):
        client.bind(("127.0.0.1", 0))
        client.sendto(b"q" * 20, server.getsockname())
    taken = 0
    while taken < 80:
        taken += LIBC.recvmmsg(server.fileno(), into.list, 20, 0, None)
    for client in clients:
        server.sendto(b"answer", client.getsockname())
    return [flow([80, 1600, 80, 480], fd=server.fileno())]


@act
def more_messages_go_than_programs_can_be_chained():
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out = Messages([b"z" * (1 + n % 7) for n in range(1024)],
                   [inet(20000 + n) for n in range(1024)])
    sent = 0
    while sent < 1024:
        sent += LIBC.sendmmsg(client.fileno(), ctypes.byref(out.list, out.SIZE * sent), 1024 - sent, 0)
    return [flow([0, 0, 1024, sum(1 + n % 7 for n in range(1024))], fd=client.fileno())]


@act
def messages_go_to_what_is_not_recorded():
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    out = Messages([struct.pack("=IHHII", 16, 1, 0, 0, 0)] * 20)
    assert LIBC.sendmmsg(kernel.fileno(), out.list, 20, 0) == 20
    return []


@act
def an_address_is_mapped():
    server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", 0))
    server.listen()
    client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
    held, _ = server.accept()
    client.send(b"x" * 30)
    held.recv(100)
    port = server.getsockname()[1]
    return [
        flow([0, 0, 1, 30], fd=client.fileno(), port=port, ops="C", address="127.0.0.1"),
        flow([1, 30, 0, 0], fd=held.fileno(), port=port, ops="A", address="127.0.0.1"),
    ]


@act
def unix_sockets_are_shut_down():
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract.bind("\0sysflow-flows")
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.sendto(b"u" * 40, "\0sysflow-flows")
    abstract.recv(100)
    left, right = socket.socketpair()
    left.send(b"x" * 5)
    right.recv(5)
    left.shutdown(socket.SHUT_WR)
    return [
        flow([1, 40, 0, 0], fd=abstract.fileno(), path="@sysflow-flows"),
        flow([0, 0, 1, 40], fd=sender.fileno()),
        flow([0, 0, 1, 5], fd=left.fileno(), ops="S"),
        flow([1, 5, 0, 0], fd=right.fileno()),
    ]


@act
def a_descriptor_is_copied():
    source = made("source", b"d" * 100)
    sink = target("replaced")
    os.write(sink, b"w" * 7)
    os.read(source, 10)
    # The number of the second file belongs to the first one now; its flow has ended.
    os.dup2(source, sink)
    os.read(sink, 20)
    third = os.dup(source)
    fourth = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 100)
    os.read(third, 5)
    os.read(fourth, 6)
    os.close(source)
    # The others go on.
    os.read(third, 5)
    os.dup2(third, fourth, inheritable=False)
    os.read(fourth, 3)
    return [
        flow([0, 0, 1, 7], fd=sink, path=path("replaced"), ops="C"),
        flow([1, 10, 0, 0], fd=source, path=path("source"), ops="C"),
        flow([1, 20, 0, 0], fd=sink, path=path("source")),
        flow([2, 10, 0, 0], fd=third, path=path("source")),
        flow([2, 9, 0, 0], fd=fourth, path=path("source")),
        flow([6, 49, 1, 100], path=path("source")),
    ]


@act
def high_descriptors_are_closed_by_range():
    one = target("high")
    high, higher = (fcntl.fcntl(one, fcntl.F_DUPFD, number) for number in (300, 900))
    for descriptor in (one, high, higher):
        os.write(descriptor, b"h" * 11)
    assert LIBC.close_range(290, 400, 0) == 0
    os.write(higher, b"h" * 2)
    again = fcntl.fcntl(one, fcntl.F_DUPFD, 300)
    os.write(again, b"h" * 100)
    assert LIBC.close_range(800, ctypes.c_uint(-1), 2) == 0
    return [
        flow([0, 0, 1, 11], fd=one, ops="T"),
        flow([0, 0, 2, 111], fd=high, ops="C"),
        flow([0, 0, 2, 13], fd=higher, ops="C"),
    ]


@act
def a_program_begins_with_high_descriptors():
    one = target("kept")
    kept = fcntl.fcntl(one, fcntl.F_DUPFD, 700)
    closed = fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 701)
    for descriptor in (one, kept, closed):
        os.write(descriptor, b"k" * 3)
    pid = os.fork()
    if pid == 0:
        os.write(closed, b"k")
        os.write(kept, b"k")
        program = "import os, sys; os.write(int(sys.argv[1]), b'more')"
        os.execv(sys.executable, [sys.executable, "-I", "-c", program, str(kept)])
    os.waitpid(pid, 0)
    return [flow([0, 0, 1, 1], pid=pid, fd=closed, ops="T"),
            flow([0, 0, 2, 5], pid=pid, fd=kept, path=path("kept"))]


@act
def files_are_mapped():
    one = made("mapped", b"m" * 4096)
    os.read(one, 10)
    for _ in range(3):
        assert LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, one, 0) not in FAILED
    # Memory without a file is nobody's flow.
    LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    other = made("mapped first", b"m" * 4096)
    copy = os.dup(other)
    LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, copy, 0)
    return [
        flow([1, 10, 0, 0], fd=one, ops="M"),
        flow([0, 0, 0, 0], fd=copy, path=path("mapped first"), ops="M"),
    ]


@act
def a_namespace_is_entered():
    space = os.open("/proc/self/ns/uts", os.O_RDONLY)
    assert LIBC.setns(space, 0) == 0
    assert LIBC.setns(space, 0) == 0
    process = os.pidfd_open(os.getpid())
    assert LIBC.setns(process, 0x04000000) == 0
    return [
        flow([0, 0, 0, 0], fd=space, ops="N", path=os.readlink("/proc/self/ns/uts")),
        flow([0, 0, 0, 0], fd=process, ops="N", kind="?"),
    ]


@act
def a_descriptor_is_passed():
    left, right = socket.socketpair()
    one = target("passed")
    os.write(one, b"p" * 4)
    socket.send_fds(left, [b"x"], [one])
    pid = os.fork()
    if pid == 0:
        _, (got, *_), _, _ = socket.recv_fds(right, 10, 1)
        os.write(got, b"p" * 9)
        os._exit(0)
    os.waitpid(pid, 0)
    return [
        flow([0, 0, 1, 4], fd=one, path=path("passed")),
        flow([0, 0, 1, 9], pid=pid, path=path("passed")),
        flow([1, 1, 0, 0], pid=pid, fd=right.fileno()),
    ]


@act
def what_is_no_file_is_not_recorded():
    counter = os.eventfd(0)
    os.eventfd_write(counter, 1)
    os.eventfd_read(counter)
    return [{"fd": counter}]


class Ring:
    """An io_uring that one operation after the other goes through."""

    def __init__(self):
        setup = ctypes.create_string_buffer(120)
        self.descriptor = LIBC.syscall(425, 4, setup)
        assert self.descriptor >= 0, os.strerror(ctypes.get_errno())
        words = struct.unpack_from("30I", setup)
        _, self.tail, self.mask, _, _, _, self.order = words[10:17]
        self.head, self.done, self.done_mask, _, _, self.results = words[20:26]
        self.submissions, self.completions, self.entries = (
            self._map(offset) for offset in (0, 0x8000000, 0x10000000)
        )

    def _map(self, offset):
        at = LIBC.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED,
                       self.descriptor, offset)
        return (ctypes.c_ubyte * 4096).from_address(at)

    def do(self, operation, descriptor, address, length, place):
        """One operation, waited for; its result."""
        word = lambda area, at: struct.unpack_from("I", area, at)[0]
        tail = word(self.submissions, self.tail)
        index = tail & word(self.submissions, self.mask)
        struct.pack_into("BBHiQQIIQ24x", self.entries, 64 * index, operation, 0, 0, descriptor,
                         place, address, length, 0, 1)
        struct.pack_into("I", self.submissions, self.order + 4 * index, index)
        struct.pack_into("I", self.submissions, self.tail, tail + 1)
        assert LIBC.syscall(426, self.descriptor, 1, 1, 1, None, 0) == 1
        head = word(self.completions, self.head)
        at = self.results + 16 * (head & word(self.completions, self.done_mask))
        result = struct.unpack_from("i", self.completions, at + 8)[0]
        struct.pack_into("I", self.completions, self.head, head + 1)
        return result


def connect_by(ring, one, port):
    address = ctypes.create_string_buffer(inet(port), 16)
    return ring.do(16, one.fileno(), ctypes.addressof(address), 0, 16)


def a_connection_is_made_by_io_uring():
    server = socket.create_server(("127.0.0.1", 0))
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    port, nobody = server.getsockname()[1], closed.getsockname()[1]
    client, refused, known = (socket.socket() for _ in range(3))
    ring = Ring()
    assert connect_by(ring, client, port) == 0
    assert connect_by(ring, refused, nobody) == -111
    # A system call on the connection joins its flow.
    client.send(b"x" * 8)
    known.connect(("127.0.0.1", port))
    known.send(b"y" * 3)
    number = client.fileno()
    client.close()
    return [
        flow([0, 0, 1, 8], port=port, fd=number, ops="CW", records=1),
        flow([0, 0, 0, 0], port=nobody, fd=refused.fileno(), ops="C", error=-111),
        flow([0, 0, 1, 3], port=port, fd=known.fileno(), ops="CW", records=1),
    ]


def permits_io_uring():
    descriptor = LIBC.syscall(425, 4, ctypes.create_string_buffer(120))
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0


if permits_io_uring():
    act(a_connection_is_made_by_io_uring)


@act
def vectors_are_read_and_written_at_places():
    one = os.open(path("vectors"), os.O_RDWR | os.O_CREAT)
    written = os.pwritev(one, [b"a" * 10, b"b" * 20], 5, os.RWF_DSYNC)
    written += os.pwritev(one, [b"c"], 0)
    read = os.preadv(one, [bytearray(7), bytearray(7)], 0, os.RWF_HIPRI)
    return [flow([1, read, 2, written], fd=one, path=path("vectors"))]


@act
def a_socket_goes_on_to_a_peer_that_is_alike():
    # As little-endian words the addresses differ by 256, and 31 times that is between the ports.
    while True:
        receivers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        receivers[0].bind(("127.1.0.1", 0))
        try:
            receivers[1].bind(("127.0.0.1", receivers[0].getsockname()[1] + 31 * 256))
            break
        except (OSError, OverflowError):
            continue
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    truth = []
    for number, receiver in enumerate(receivers):
        host, port = receiver.getsockname()
        one.connect((host, port))
        one.send(b"p" * (number + 1))
        truth.append(flow([0, 0, 1, number + 1], fd=one.fileno(), address=host, port=port))
    return truth


@act
def sockets_follow_each_other_on_one_number():
    # As a resolver does it: the kernel often gives the next socket the memory of the last.
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            number = one.fileno()
            one.sendto(b"question", receiver.getsockname())
    port = receiver.getsockname()[1]
    return [flow([0, 0, 100, 800], fd=number, port=port, records=100)]


@act
def a_file_is_opened_by_its_handle():
    os.close(target("handle"))
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    name = path("handle").encode()
    if LIBC.name_to_handle_at(-100, name, handle, ctypes.byref(mount), 0):
        return []
    folder = os.open(FOLDER, os.O_RDONLY)
    one = LIBC.open_by_handle_at(folder, handle, os.O_RDWR)
    if one < 0:
        return []
    os.write(one, b"h" * 7)
    os.close(one)
    return [flow([0, 0, 1, 7], fd=one, path=path("handle"), ops="O  W    C")]


print(json.dumps(ACTS))
