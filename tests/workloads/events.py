"""Calls that change attributes and privileges, and fail to. Prints one JSON object: the process
that made them, and of each call the operation, the file or the arguments, and the result that the
kernel gave. Usage: events.py FOLDER"""

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import stat
import struct
import sys

FOLDER = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
# Numbers of the calls that libc does not pass on as they are: on x86-64, in the generic table and
# on 32-bit ARM.
CALLS = {
    "x86_64": {
        "finit_module": 313,
        "bpf": 321,
        "move_mount": 429,
        "capset": 126,
        "fchmodat2": 452,
        "setfsgid": 123,
    },
    "aarch64": {
        "finit_module": 273,
        "bpf": 280,
        "move_mount": 429,
        "capset": 91,
        "fchmodat2": 452,
        "setfsgid": 152,
    },
    "armv7l": {
        "finit_module": 379,
        "bpf": 386,
        "move_mount": 429,
        "capset": 185,
        "fchmodat2": 452,
        "setfsgid": 216,
    },
}[platform.machine()]
EVENTS = []


def call(function, *arguments):
    """The result as the kernel gives it: a number, or a negative errno."""
    ctypes.set_errno(0)
    result = function(*arguments)
    return -ctypes.get_errno() if result == -1 else result


def raw(name, *arguments):
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return call(LIBC.syscall, ctypes.c_long(CALLS[name]), *words)


def note(operation, ret, path=None, args=None, process=None, inode=None, address=None):
    event = {"address": address, "operation": operation, "ret": ret, "path": path, "args": args, "inode": inode}
    EVENTS.append({**event, "pid": process or os.getpid()})


def below(name):
    return os.path.join(FOLDER, name)


def in_a_child(function):
    """Runs what changes a process for good in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        EVENTS.clear()
        function()
        os.write(writer, json.dumps(EVENTS).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        EVENTS.extend(json.loads(told.read()))
    os.waitpid(pid, 0)


def attributes():
    path = below("file")
    with open(path, "w") as file:
        file.write("0123456789")
    missing = below("missing")
    descriptor = os.open(path, os.O_RDWR)
    folder = os.open(FOLDER, os.O_RDONLY)
    # What is called by descriptor is told with the file's own number.
    inode = os.fstat(descriptor).st_ino
    c_path, c_missing = path.encode(), missing.encode()

    note("CHMOD", call(LIBC.chmod, c_path, 0o640), path, ["0640"])
    note("CHMOD", call(LIBC.fchmod, descriptor, 0o4711), path, ["4711"], inode=inode)
    note("CHMOD", call(LIBC.fchmodat, folder, b"file", 0o600, 0), path, ["0600"])
    note("CHMOD", call(LIBC.fchmodat, folder, b"none", 0o601, 0), below("none"), ["0601"])
    note("CHMOD", raw("fchmodat2", folder, b"file", 0o602, 0), path, ["0602"])
    note("CHMOD", call(LIBC.chmod, c_missing, 0o603), missing, ["0603"])

    root = "root"
    note("CHOWN", call(LIBC.chown, c_path, 12345, 54321), path, ["12345", "54321"])
    note("CHOWN", call(LIBC.fchown, descriptor, 0, -1), path, [root, ""], inode=inode)
    note("CHOWN", call(LIBC.lchown, c_path, -1, 54322), path, ["", "54322"])
    note("CHOWN", call(LIBC.fchownat, folder, b"file", 0, 54323, 0), path, [root, "54323"])
    # AT_EMPTY_PATH: the file is the descriptor's own.
    note("CHOWN", call(LIBC.fchownat, descriptor, b"", 0, 54324, 0x1000), path, [root, "54324"])
    note("CHOWN", call(LIBC.chown, c_missing, 0, 54325), missing, [root, "54325"])

    length = ctypes.c_int64
    note("RESIZE", call(LIBC.truncate64, c_path, length(5_000_000_000)), path, ["5000000000"])
    note("RESIZE", call(LIBC.ftruncate64, descriptor, length(7)), path, ["7"], inode=inode)
    note("RESIZE", call(LIBC.ftruncate64, descriptor, length(-3)), path, ["-3"], inode=inode)
    note("RESIZE", call(LIBC.truncate64, c_missing, length(9)), missing, ["9"])
    # Not one of an open file: no record.
    call(LIBC.ftruncate64, 9999, length(1))
    call(LIBC.fchmod, 9999, 0o777)

    null, fifo = ctypes.c_uint64(os.makedev(1, 3)), below("fifo")
    device = below("device")
    mode = stat.S_IFCHR | 0o620
    note("MKNOD", call(LIBC.mknod, device.encode(), mode, null), device, ["020620", "1:3"])
    fifo_mode = stat.S_IFIFO | 0o600
    note("MKNOD", call(LIBC.mknodat, folder, b"fifo", fifo_mode, ctypes.c_uint64(0)), fifo, ["010600"])
    note("MKNOD", call(LIBC.mknod, device.encode(), mode, null), device, ["020620", "1:3"])


def mounts():
    note("UNSHARE", call(LIBC.unshare, 0x20000), args=["0x20000"])
    LIBC.mount(b"none", b"/", None, 0x44000, None)
    note("MOUNT", 0, "/", ["none", "", "0x44000"])
    place, other = below("place"), below("other")
    os.mkdir(place)
    os.mkdir(other)
    result = call(LIBC.mount, b"a-source", place.encode(), b"tmpfs", 0x2, b"size=64k")
    note("MOUNT", result, place, ["a-source", "tmpfs", "0x2"])
    # From the mounted folder, to the other one.
    result = raw("move_mount", -100, place.encode(), -100, other.encode(), 0)
    note("MOUNT", result, other, [place, "", "0x0"])
    result = call(LIBC.mount, b"none", place.encode(), b"no-such-type", 0, None)
    note("MOUNT", result, place, ["none", "no-such-type", "0x0"])
    note("UMOUNT", call(LIBC.umount2, other.encode(), 2), other, ["0x2"])
    note("UMOUNT", call(LIBC.umount2, place.encode(), 8), place, ["0x8"])


def capabilities():
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(0x21, 0x21, 0, 1 << 7, 1 << 7, 0)
    note("CAPSET", raw("capset", head, sets), args=["0x8000000021", "0x8000000021", "0x0"])
    # More than it has now.
    sets = (ctypes.c_uint32 * 6)(0x21, 0x23, 0, 0, 0, 0)
    note("CAPSET", raw("capset", head, sets), args=["0x21", "0x23", "0x0"])


def groups():
    note("SETGID", call(LIBC.setregid, 41001, 41002), args=["41002"])
    note("SETGID", raw("setfsgid", 41001), args=["41001"])
    note("SETGID", call(LIBC.setresgid, -1, -1, 41001), args=[""])
    note("SETGID", call(LIBC.setgid, 41003), args=["41003"])
    LIBC.setresuid(65534, 65534, 65534)
    note("SETGID", call(LIBC.setgid, 0), args=["root"])
    note("UNSHARE", call(LIBC.unshare, 0x20000), args=["0x20000"])
    note("UNLOAD_MODULE", call(LIBC.delete_module, b"no-such-module", 0x800), args=["no-such-module", "0x800"])


def tracing():
    child = os.fork()
    if child == 0:
        note("PTRACE", call(LIBC.ptrace, 0, 0, None, None), args=["TRACEME", "0"])
        os.kill(os.getpid(), 19)
        os._exit(0)
    os.waitpid(child, 0)
    note("PTRACE", 0, args=["TRACEME", "0"], process=child)
    # Looking is not recorded, writing is.
    buffer = ctypes.create_string_buffer(8)
    address = ctypes.c_void_p(ctypes.addressof(buffer))
    LIBC.ptrace(2, child, address, None)
    result = call(LIBC.ptrace, 5, child, address, ctypes.c_void_p(1))
    note("PTRACE", result, args=["POKEDATA", str(child)])
    LIBC.ptrace(17, child, None, None)
    os.kill(child, 18)
    os.waitpid(child, 0)
    victim = os.fork()
    if victim == 0:
        while True:
            LIBC.pause()
    note("PTRACE", call(LIBC.ptrace, 0x4206, victim, None, None), args=["SEIZE", str(victim)])
    note("PTRACE", call(LIBC.ptrace, 16, victim, None, None), args=["ATTACH", str(victim)])
    os.kill(victim, 9)
    os.waitpid(victim, 0)


def code():
    path = below("module.ko")
    with open(path, "w") as file:
        file.write("no module")
    descriptor = os.open(path, os.O_RDONLY)
    result = raw("finit_module", descriptor, b"debug=1 name=x", 2)
    note("LOAD_MODULE", result, args=[path, "debug=1 name=x", "0x2"])
    image = b"no image"
    result = call(LIBC.init_module, image, ctypes.c_long(len(image)), b"p=2")
    note("LOAD_MODULE", result, args=["", "p=2", str(len(image))])

    # r0 = 0; exit
    program = (ctypes.c_uint64 * 2)(0xB7, 0x95)
    licence = ctypes.create_string_buffer(b"GPL")
    for name, instructions in [(b"small_filter", 2), (b"no_program", 0)]:
        attributes = bytearray(120)
        attributes[0:4] = (1).to_bytes(4, sys.byteorder)
        attributes[4:8] = instructions.to_bytes(4, sys.byteorder)
        attributes[8:16] = ctypes.addressof(program).to_bytes(8, sys.byteorder)
        attributes[16:24] = ctypes.addressof(licence).to_bytes(8, sys.byteorder)
        attributes[48 : 48 + len(name)] = name
        result = raw("bpf", 5, (ctypes.c_char * 120).from_buffer(attributes), 120)
        note("LOAD_BPF", result, args=["1", name.decode()])

    note("MEMFD", call(LIBC.memfd_create, b"a-name", 3), args=["a-name", "0x3"])
    note("MEMFD", call(LIBC.memfd_create, b"refused", 0x8000_0000), args=["refused", "0x80000000"])


def result_of(function, *arguments):
    try:
        function(*arguments)
        return 0
    except OSError as error:
        return -error.errno


def sockets():
    for family, host in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]:
        one, other = socket.socket(family), socket.socket(family)
        # The port is the kernel's choice.
        result = result_of(one.bind, (host, 0))
        port = one.getsockname()[1]
        note("BIND", result, address=[host, port])
        note("LISTEN", result_of(one.listen, 5), address=[host, port])
        note("BIND", result_of(other.bind, (host, port)), address=[host, port])
        # Only looks: no record. Then there is no room for a descriptor.
        one.setblocking(False)
        result_of(one.accept)
        client = socket.create_connection((host, port))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        result = call(LIBC.accept, one.fileno(), None, None)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        client.close()
        note("ACCEPT", result, address=[host, port])
    result = result_of(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).listen)
    note("LISTEN", result, address=["0.0.0.0", 0])
    path = below("socket")
    named = socket.socket(socket.AF_UNIX)
    inode = os.fstat(named.fileno()).st_ino
    note("BIND", result_of(named.bind, path), path, [], inode=inode)
    note("LISTEN", result_of(named.listen, 1), path, [], inode=inode)
    refused = socket.socket(socket.AF_UNIX)
    inode = os.fstat(refused.fileno()).st_ino
    note("BIND", result_of(refused.bind, path), path, [], inode=inode)
    abstract = socket.socket(socket.AF_UNIX)
    inode = os.fstat(abstract.fileno()).st_ino
    result = result_of(abstract.bind, "\0sysflow-events")
    note("BIND", result, "@sysflow-events", [], inode=inode)


def opens():
    path = below("private")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    folder = os.open(FOLDER, os.O_RDONLY)
    os.setresuid(65534, 65534, 65534)
    flags = os.O_RDWR | os.O_TRUNC
    # SysFlow's RDWR and TRUNC; WRONLY, CREAT and TRUNC.
    note("OPEN", call(LIBC.open, path.encode(), flags), path, ["0x103"])
    note("OPEN", call(LIBC.openat, folder, b"private", flags), path, ["0x103"])
    note("OPEN", call(LIBC.creat, path.encode(), 0o600), path, ["0x106"])
    handle = struct.pack("=Ii", 8, 1) + bytes(8)
    result = call(LIBC.open_by_handle_at, folder, handle, os.O_RDONLY)
    # A kernel without such handles says so.
    if result == -errno.EPERM:
        note("OPEN", result, FOLDER, ["0x1"])
    # There is nothing: no record.
    call(LIBC.open, below("missing").encode(), os.O_RDONLY)


attributes()
for what in (mounts, capabilities, groups, tracing, code, sockets, opens):
    in_a_child(what)
print(json.dumps(EVENTS))
