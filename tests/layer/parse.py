"""Parses the Yocto layer of a tree with BitBake's own parser (`bb`, from the PyPI package
bitbake-setup), and prints a line for each fault.

The classes of oe-core are not to be had from a package registry: stubs stand in for those that
the layer inherits. So this sees syntax, unknown classes, missing files, wrong checksums, wrong
package versions, shell functions that are none, hosts that a recipe takes or refuses, and what
the append does to a kernel with the distribution feature and without it. It cannot see whether
what the recipes set means to the real classes what it should, whether other layers have what DEPENDS names, or whether
anything builds: README.md of the layer says how that is tried where oe-core is.

    parse.py TREE RELEASE
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import types
from pathlib import Path

# Classes that exist in oe-core, in both releases, with what recipes use of them.
CLASSES = {
    "base": """
        FILESPATH = "${FILE_DIRNAME}/${BP}:${FILE_DIRNAME}/${BPN}:${FILE_DIRNAME}/files"
        do_compile () { : }
        addtask do_compile
        do_install () { : }
        addtask do_install after do_compile
    """,
    "cargo": """
        CARGO_BUILD_FLAGS = "-v --frozen --target ${RUST_HOST_SYS} --release"
        RUST_HOST_SYS = "aarch64-oe-linux-gnu"
        CARGO_TARGET_SUBDIR = "${RUST_HOST_SYS}/release"
        B = "${WORKDIR}/build"
    """,
    "kernel": """
        do_deploy () { : }
        addtask do_deploy after do_install
    """,
    "bash-completion": "",
    "features_check": "",
    "kernel-yocto": "",
    "pkgconfig": "",
    "ptest": "",
    "systemd": "",
    "update-rc.d": "",
    "useradd": "",
}

# What bitbake.conf, the distribution and the machine set.
SETTINGS = {
    "PN": "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[0]}",
    "PV": "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[1]}",
    "BPN": "${PN}",
    "BP": "${BPN}-${PV}",
    "FILE_DIRNAME": "${@os.path.dirname(d.getVar('FILE', False))}",
    "WORKDIR": "/build/${BP}",
    "B": "${S}",
    "D": "/build/image",
    "THISDIR": "${@os.path.dirname(d.getVar('FILE', False))}",
    "COMMON_LICENSE_DIR": "/licences",
    "DISTRO_FEATURES": "systemd sysvinit sysflow",
    "FILESEXTRAPATHS": "__default:",
    "LAYERSERIES_CORENAMES": "",
    "TARGET_ARCH": "aarch64",
    "MACHINE_ARCH": "machine",
    "bindir": "/usr/bin",
    "datadir": "/usr/share",
    "mandir": "/usr/share/man",
    "nonarch_libdir": "/usr/lib",
    "sysconfdir": "/etc",
    "localstatedir": "/var",
    "systemd_system_unitdir": "/usr/lib/systemd/system",
    "INIT_D_DIR": "/etc/init.d",
    "DEPLOYDIR": "/build/deploy",
    "DEPLOY_DIR_IMAGE": "/deploy",
    "STAGING_DATADIR": "/sysroot/usr/share",
    "OBJCOPY": "objcopy",
    "READELF": "readelf",
    "AUTOREV": "AUTOINC",
    "OVERRIDES": "class-target:libc-glibc:pn-${PN}",
    # Of what oe-core's checks of packages fail or warn of.
    "ERROR_QA": "already-stripped arch buildpaths file-rdeps ldflags textrel",
    "WARN_QA": "host-user-contaminated libdir",
}
# HOST_SYS as oe-core makes it, for each C library.
HOSTS = {
    "glibc": ["aarch64-oe-linux", "arm-oe-linux-gnueabi", "x86_64-oe-linux"],
    "musl": ["aarch64-oe-linux-musl", "arm-oe-linux-musleabi", "x86_64-oe-linux-musl"],
}
# Where the releases differ.
RELEASES = {
    "scarthgap": {"S": "${WORKDIR}/${BP}"},
    "wrynose": {"S": "${UNPACKDIR}/${BP}", "UNPACKDIR": "${WORKDIR}/sources"},
}


def load_bitbake(cache):
    """The package has the library without its two servers, which parsing does not need."""
    for name in ("hashserv", "hashserv.client", "prserv"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["hashserv"].client = sys.modules["hashserv.client"]
    import bb
    import bb.codeparser
    import bb.data
    import bb.parse
    import bb.utils

    bb.codeparser.parser_cache_init(str(cache))
    return bb


class Layer:
    def __init__(self, tree, release, stubs):
        self.bb = load_bitbake(stubs)
        self.tree = tree
        self.folder = tree / "yocto/meta-sysflow"
        self.stubs = stubs
        self.settings = {**SETTINGS, **RELEASES[release]}
        self.release = release
        self.faults = []
        (stubs / "classes").mkdir()
        for name, text in CLASSES.items():
            lines = "\n".join(line.strip() for line in text.splitlines())
            # The parser wants a function's end on a line of its own.
            (stubs / "classes" / f"{name}.bbclass").write_text(lines.replace("{ : }", "{\n:\n}"))

    def fault(self, place, text):
        self.faults.append(f"{place}: {text}")

    def data(self, **settings):
        d = self.bb.data.init()
        for name, value in {**self.settings, **settings}.items():
            d.setVar(name, value)
        d.setVar("__bbclasstype", "recipe")
        d.setVar("BB_SIGNATURE_HANDLER", "noop")
        d.setVar("BBPATH", str(self.stubs))
        d.setVar("LAYERDIR", str(self.folder))
        d = self.bb.parse.handle(str(self.folder / "conf/layer.conf"), d, True)
        # As BitBake does it: LAYERDIR is known while layer.conf is read, and not after.
        d.expandVarref("LAYERDIR")
        d.delVar("LAYERDIR")
        if self.release not in d.getVar("LAYERSERIES_COMPAT_sysflow").split():
            self.fault("conf/layer.conf", f"LAYERSERIES_COMPAT does not have {self.release}")
        self.bb.parse.init_parser(d)
        self.bb.parse.BBHandler.inherit("base", "INHERIT", 0, d)
        return d

    def parse(self, file, appended=None, **settings):
        """Of a recipe its data; none if it cannot be parsed."""
        d = self.data(**settings)
        d.setVar("FILE", str(file))
        if appended:
            d.setVar("__BBAPPEND", str(appended))
        try:
            return self.bb.parse.handle(str(file), d)[""]
        except BaseException as error:  # BitBake's own end a program.
            self.fault((appended or file).name, f"{type(error).__name__}: {error}")
            return None

    def recipe(self, file, appended=None):
        d = self.parse(file, appended)
        if d is None:
            return
        place = (appended or file).name
        for uri in (d.getVar("SRC_URI") or "").split():
            if uri.startswith("file://"):
                name = uri.removeprefix("file://").split(";")[0]
                paths = d.getVar("FILESEXTRAPATHS").replace("__default:", "")
                if not self.bb.utils.which(paths + d.getVar("FILESPATH"), name):
                    self.fault(place, f"file://{name} is in none of the recipe's folders")
        if d.getVar("LIC_FILES_CHKSUM"):
            self.licences(place, d)
        elif not appended:
            self.fault(place, "has no LIC_FILES_CHKSUM")
        if "crate://" in (d.getVar("SRC_URI") or ""):
            self.crates(place, d)
            if "--frozen" not in (d.getVar("CARGO_BUILD_FLAGS") or "").split():
                self.fault(place, "lets cargo change the lock file or ask a network: no --frozen")
        if not appended:
            self.version(place, d)
            self.hosts(place, file, d)
        self.functions(place, d)
        self.judges(place, d)

    def licences(self, place, d):
        for entry in d.getVar("LIC_FILES_CHKSUM").split():
            name, *parameters = entry.removeprefix("file://").split(";")
            if name.startswith("/licences/"):
                continue  # oe-core's own
            wanted = dict(parameter.split("=") for parameter in parameters)["md5"]
            file = self.tree / name
            if not file.is_file():
                self.fault(place, f"licence {name} is not in the tree")
            elif (found := hashlib.md5(file.read_bytes()).hexdigest()) != wanted:
                self.fault(place, f"licence {name} has checksum {found}, not {wanted}")

    def crates(self, place, d):
        """Exactly the lock file's crates are fetched, with the lock file's checksums."""
        lock = tomllib.loads((self.tree / "Cargo.lock").read_text())
        wanted = {
            f"crate://crates.io/{p['name']}/{p['version']};name={p['name']}-{p['version']}":
            p["checksum"]
            for p in lock["package"] if "source" in p
        }
        flags = d.getVarFlags("SRC_URI") or {}
        held = {
            uri: flags.get(uri.split(";name=")[-1] + ".sha256sum")
            for uri in d.getVar("SRC_URI").split() if uri.startswith("crate://")
        }
        for uri in sorted(wanted.keys() ^ held.keys()):
            here = "fetched, but not in Cargo.lock" if uri in held else "not fetched"
            self.fault(place, f"{uri} is {here}")
        for uri in sorted(wanted.keys() & held.keys()):
            if wanted[uri] != held[uri]:
                self.fault(place, f"{uri} has checksum {held[uri]}, Cargo.lock has {wanted[uri]}")

    def version(self, place, d):
        lock = tomllib.loads((self.tree / "Cargo.lock").read_text())
        version = next(p["version"] for p in lock["package"] if p["name"] == "agent")
        if d.getVar("PV") != version:
            self.fault(place, f"is of version {d.getVar('PV')}, the agent of {version}")

    def hosts(self, place, file, d):
        """Each architecture with glibc, and none with musl, for which libbpf-sys needs tools of the
        build host that the recipe does not name."""
        musl = self.parse(file, OVERRIDES="class-target:libc-musl:pn-${PN}")
        for library, data in (("glibc", d), ("musl", musl)):
            hosts = (data and data.getVar("COMPATIBLE_HOST")) or ""
            for host in HOSTS[library]:
                if bool(re.match(hosts, host)) != (library == "glibc"):
                    verb = "refuses" if library == "glibc" else "does not refuse"
                    self.fault(place, f"{verb} {library}: {host}, COMPATIBLE_HOST is {hosts!r}")

    def kernel(self, appended):
        """With the distribution feature the append asks for types, looks for them in what was built,
        and deploys them; without it, it changes nothing."""
        place = appended.name
        name = place.replace("_%.bbappend", "_1.bb")
        file, other = self.stubs / name, self.stubs / f"other-{name}"
        file.write_text("inherit kernel kernel-yocto\n")
        other.write_text("inherit kernel\n")
        self.recipe(file, appended)
        without = " ".join(w for w in self.settings["DISTRO_FEATURES"].split() if w != "sysflow")
        asked = self.parse(file, appended)
        elsewhere = self.parse(other, appended)
        plain = self.parse(file, DISTRO_FEATURES=without)
        kept = self.parse(file, appended, DISTRO_FEATURES=without)
        if None in (asked, elsewhere, plain, kept):
            return
        if "sysflow_btf_check" not in (asked.getVarFlag("do_compile", "postfuncs") or "").split():
            self.fault(place, "do_compile does not end with sysflow_btf_check")
        if asked.getVar("KERNEL_DEBUG") != "True":
            self.fault(place, "KERNEL_DEBUG is not True: oe-core then builds without pahole")
        if "pahole-native" not in (asked.getVar("DEPENDS") or "").split():
            self.fault(place, "does not depend on pahole-native")
        if "/sysflow-kernel.btf" not in asked.getVar("do_deploy"):
            self.fault(place, "do_deploy does not deploy sysflow-kernel.btf")
        for data, is_merged in ((asked, True), (elsewhere, False)):
            uris = data.getVar("SRC_URI").split()
            if "file://sysflow.cfg" not in uris or ("file://sysflow.scc" in uris) != is_merged:
                where = "with" if is_merged else "without"
                self.fault(place, f"has for a kernel {where} kernel-yocto the sources {uris}")
        for key in sorted(filter(is_of_recipe, {*kept.keys(), *plain.keys()})):
            before, after = ((data.getVar(key, False), flags(data, key)) for data in (plain, kept))
            if before != after:
                self.fault(place, f"changes {key} without the feature: {before} to {after}")

    def judges(self, place, d):
        """oe-core's checks of packages are all made."""
        for name in ("ERROR_QA", "WARN_QA"):
            lost = set(self.settings[name].split()) - set((d.getVar(name) or "").split())
            if lost:
                self.fault(place, f"takes {', '.join(sorted(lost))} out of {name}")
        if d.getVarFlag("do_package_qa", "noexec", False):
            self.fault(place, "leaves out do_package_qa")

    def functions(self, place, d):
        """Tasks as BitBake would run them: expanded, with all that they call."""
        for name in d.keys():
            is_shell = d.getVarFlag(name, "func", False) and not d.getVarFlag(name, "python", False)
            text = d.getVar(name)
            if not is_shell or text is None:
                continue
            if "${" in text.replace("$${", "") and (left := unexpanded(text, d)):
                self.fault(place, f"{name} uses {left}, which nobody sets")
            shell = subprocess.run(
                ["sh", "-n"], input=f"f() {{\n{text}\n}}\n", text=True, capture_output=True)
            if shell.returncode:
                self.fault(place, f"{name}: {shell.stderr.strip()}")
        built = (d.getVar("DEPENDS") or "").split()
        run = (d.getVar("RDEPENDS:" + (d.getVar("PN") or "")) or "").split()
        if any(word in built + run for word in ("clang", "bpftool")):
            self.fault(place, "depends on a compiler of the target")
        # On scarthgap these are two builds of LLVM, whose files collide in the sysroot: meta-clang's
        # clang-native has all of LLVM, llvm-objcopy included.
        if {"clang-native", "llvm-native"} <= set(built):
            self.fault(place, "depends on clang-native and on llvm-native, which collide")
        network = [t for t in d.keys() if d.getVarFlag(t, "network", False)]
        if network:
            self.fault(place, f"opens the network in {', '.join(network)}")
        if any(name.startswith("INSANE_SKIP") for name in d.keys()):
            self.fault(place, "skips checks of packages (INSANE_SKIP)")


def is_of_recipe(key):
    """Whether a variable is a recipe's: the parser keeps notes of its own, of the files it read."""
    return not key.startswith("__") and key not in ("BBINCLUDED", "FILE")


def flags(d, key):
    """The flags of a variable that are not the parser's notes of where it stands."""
    held = d.getVarFlags(key) or {}
    return {name: held[name] for name in held if name not in ("filename", "lineno")}


def unexpanded(text, d):
    """The first ${NAME} that the text keeps."""
    start = text.find("${")
    while start >= 0:
        name = text[start + 2:text.find("}", start)]
        if name.isidentifier() and d.getVar(name) is None:
            return "${" + name + "}"
        start = text.find("${", start + 2)
    return None


def main():
    tree, release = Path(sys.argv[1]).resolve(), sys.argv[2]
    with tempfile.TemporaryDirectory() as stubs:
        layer = Layer(tree, release, Path(stubs))
        recipes = sorted(layer.folder.glob("recipes-*/*/*.bb"))
        if not recipes:
            layer.fault(layer.folder, "has no recipes")
        for recipe in recipes:
            layer.recipe(recipe)
        # An appended file is parsed with the recipe of a kernel before it.
        for appended in sorted(layer.folder.glob("recipes-*/*/*.bbappend")):
            layer.kernel(appended)
        for fault in layer.faults:
            print(fault)
    return bool(layer.faults)


if __name__ == "__main__":
    sys.exit(main())
