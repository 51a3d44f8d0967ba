"""Programs that are easily taken for others. Prints one JSON object: of each case the process and
what has to be recorded of it. Usage: identities.py FOLDER"""

import ctypes
import json
import os
import shutil
import sys

FOLDER = os.path.realpath(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
TRUE = os.path.realpath("/bin/true")
CASES = {}


def case(function):
    """Runs the case in a process of its own, which tells its truth before it execs or ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        truth, program = function()
        os.write(writer, json.dumps(truth).encode())
        os.close(writer)
        if program:
            os.execve(*program)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    _, status = os.waitpid(pid, 0)
    CASES[function.__name__] = {"pid": pid, "status": status, "truth": json.loads(text or "null")}


@case
def a_script():
    with open(f"{FOLDER}/run", "w") as script:
        script.write("#!/bin/sh -e\nexit 0\n")
    os.chmod(f"{FOLDER}/run", 0o755)
    os.chdir(FOLDER)
    truth = {
        "exe": os.path.realpath("/bin/sh"),
        "script": f"{FOLDER}/run",
        "argv": ["/bin/sh", "-e", "./run", "a", "b c", ""],
    }
    return truth, ("./run", ["./run", "a", "b c", ""], {})


@case
def a_program_by_another_name():
    return {"exe": TRUE, "argv": ["applet", "x"]}, (TRUE, ["applet", "x"], {})


@case
def a_program_by_its_path():
    return {"exe": TRUE, "argv": [TRUE]}, (TRUE, [TRUE], {})


@case
def a_memfd():
    fd = os.memfd_create("hidden", 0)
    with open(TRUE, "rb") as true:
        os.write(fd, true.read())
    truth = {"exe": "/memfd:hidden", "argv": ["shown"], "flags": ["exe_detached"]}
    return truth, (f"/proc/self/fd/{fd}", ["shown"], {})


@case
def a_deleted_file():
    shutil.copy(TRUE, f"{FOLDER}/gone")
    fd = os.open(f"{FOLDER}/gone", os.O_RDONLY | os.O_CLOEXEC)
    os.unlink(f"{FOLDER}/gone")
    truth = {"exe": f"{FOLDER}/gone", "argv": ["shown"], "flags": ["exe_deleted"]}
    return truth, (f"/proc/self/fd/{fd}", ["shown"], {})


@case
def an_environment():
    env = {"LANG": "C", "PIN": "1234", "DEPLOY_TOKEN": "0x5ec2e7", "ZONE": "a b"}
    truth = {"exe": TRUE, "env": "DEPLOY_TOKEN=***;ZONE=a b", "flags": ["redacted"]}
    return truth, (TRUE, ["true"], env)


@case
def a_mount_namespace():
    if LIBC.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    number = os.stat("/proc/self/ns/mnt").st_ino
    return {"exe": TRUE, "mount_namespace": number}, (TRUE, ["true"], {})


@case
def a_file_under_three_names():
    first, second, third = (f"{FOLDER}/{name}" for name in ("first", "second", "third"))
    with open(first, "w") as file:
        file.write("x")
    os.rename(first, second)
    with open(second) as file:
        file.read()
    os.link(second, third)
    with open(third) as file:
        file.read()
    return {"paths": [first, second, third], "inode": os.stat(third).st_ino}, None


print(json.dumps(CASES))
