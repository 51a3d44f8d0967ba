"""Parses the Yocto layer of a tree with BitBake's own parser (`bb`, from the PyPI package
bitbake-setup), and prints a line for each fault.

The classes of oe-core are not to be had from a package registry: stubs stand in for those that
the layer inherits. So this sees syntax, unknown classes, missing files, wrong checksums, wrong
package versions, shell functions that are none. It cannot see whether what the recipes set means
to the real classes what it should, whether other layers have what DEPENDS names, or whether
anything builds: README.md of the layer says how that is tried where oe-core is.

    parse.py TREE RELEASE
"""

import hashlib
import os
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

    def data(self):
        d = self.bb.data.init()
        for name, value in self.settings.items():
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

    def parse(self, file, appended=None):
        """Of a recipe its data; none if it cannot be parsed."""
        d = self.data()
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
            self.version(place, d)
        self.functions(place, d)

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
        deps = [d.getVar("DEPENDS") or "", d.getVar("RDEPENDS:" + (d.getVar("PN") or "")) or ""]
        if any(word in " ".join(deps).split() for word in ("clang", "bpftool")):
            self.fault(place, "depends on a compiler of the target")
        network = [t for t in d.keys() if d.getVarFlag(t, "network", False)]
        if network:
            self.fault(place, f"opens the network in {', '.join(network)}")
        if any(name.startswith("INSANE_SKIP") for name in d.keys()):
            self.fault(place, "skips checks of packages (INSANE_SKIP)")


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
        # An appended file is parsed as if it were the recipe of the kernel.
        for appended in sorted(layer.folder.glob("recipes-*/*/*.bbappend")):
            kernel = Path(stubs) / appended.name.replace("_%.bbappend", "_1.bb")
            kernel.write_text("inherit kernel\n")
            layer.recipe(kernel, appended)
        for fault in layer.faults:
            print(fault)
    return bool(layer.faults)


if __name__ == "__main__":
    sys.exit(main())
