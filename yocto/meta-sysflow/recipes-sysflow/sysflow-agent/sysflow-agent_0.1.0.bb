SUMMARY = "SysFlow Edge agent: what programs on this device do, for a central collector"
DESCRIPTION = "Watches the kernel through eBPF probes, sums flows of data in the kernel, and \
delivers compact SysFlow records over mutual TLS to a central collector."
HOMEPAGE = "https://sysflow.io"
SECTION = "net"

# Ours, then those of the crates and of libbpf, which are linked statically.
LICENSE = "Apache-2.0 & (GPL-2.0-only | BSD-2-Clause) & BSD-2-Clause & BSD-3-Clause & ISC & MIT"
LIC_FILES_CHKSUM = "\
    file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
    file://bpf/LICENSE-GPL-2.0-only;md5=b234ee4d69f5fce4486a80fdaf4a4263 \
    file://bpf/LICENSE-BSD-2-Clause;md5=7bf82f0ff360e1731fa3dc0cf4637c02 \
"

# The probes are compiled by the build script: it asks no kernel, and no libbpf and libelf of the
# build host. clang-native has llvm-objcopy, too, in meta-clang as in oe-core; llvm-native beside it
# would be LLVM a second time, which collides with it in scarthgap's sysroots.
DEPENDS = "clang-native elfutils zlib"

# Layer and agent are one tree: its commit is what is built. From elsewhere:
#   SYSFLOW_SOURCE = "git://HOST/PATH;protocol=https;branch=main", and SRCREV
SYSFLOW_TREE ?= "${@os.path.realpath(os.path.join(d.getVar('THISDIR'), '../../../..'))}"
# Where the tree lies does not change what is built.
SYSFLOW_TREE[vardepvalue] = ""
SYSFLOW_SOURCE ?= "git://${SYSFLOW_TREE};protocol=file;nobranch=1;usehead=1"
SRC_URI = "${SYSFLOW_SOURCE};destsuffix=${BP} file://sysflow-agent.init file://run-ptest"
# nooelint: oelint.vars.autorev
SRCREV ?= "${AUTOREV}"

inherit cargo pkgconfig systemd update-rc.d useradd ptest bash-completion features_check

require ${BPN}-crates.inc

CVE_PRODUCT = "sysflow-agent"
COMPATIBLE_HOST = "(aarch64|arm|x86_64).*-linux.*"
# With musl libbpf-sys builds a libelf of its own for rustc's vendor "unknown", which oe-core's
# target specifications have, too: that takes autotools of the build host, and links statically.
COMPATIBLE_HOST:libc-musl = "null"
ANY_OF_DISTRO_FEATURES = "systemd sysvinit"

CARGO_BUILD_FLAGS += "--package agent --bin sysflow-agent"
# BitBake strips, and keeps what is stripped in -dbg.
export CARGO_PROFILE_RELEASE_STRIP = "none"
export CARGO_PROFILE_RELEASE_DEBUG = "line-tables-only"

do_install () {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/sysflow-agent ${D}${bindir}/sysflow-agent
    install -d -m 0750 ${D}${sysconfdir}/sysflow
    install -m 0640 ${S}/agent/agent.toml ${D}${sysconfdir}/sysflow/agent.toml
    chgrp -R sysflow ${D}${sysconfdir}/sysflow
    install -D -m 0644 ${S}/agent/sysflow-agent.8 ${D}${mandir}/man8/sysflow-agent.8
    install -D -m 0644 ${S}/agent/sysflow-agent.bash ${D}${datadir}/bash-completion/completions/sysflow-agent

    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -D -m 0644 ${S}/agent/sysflow-agent.service ${D}${systemd_system_unitdir}/sysflow-agent.service
    fi
    if ${@bb.utils.contains('DISTRO_FEATURES', 'sysvinit', 'true', 'false', d)}; then
        install -D -m 0755 ${UNPACKED}/sysflow-agent.init ${D}${INIT_D_DIR}/sysflow-agent
    fi

    # What sysflow-agent-btf asks the kernel's types for.
    probes=$(ls -t ${B}/target/${CARGO_TARGET_SUBDIR}/build/bpf-*/out/probes.bpf.o | head -n 1)
    [ -n "$probes" ] || bbfatal "cargo has left no probes.bpf.o in ${B}/target/${CARGO_TARGET_SUBDIR}/build/bpf-*/out"
    install -D -m 0644 "$probes" ${D}${datadir}/sysflow/probes.bpf.o
}

# Where file:// sources are: scarthgap has no UNPACKDIR.
UNPACKED = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir ${localstatedir}/lib/sysflow --shell /sbin/nologin sysflow"

# Enabled, as oe-core does it unless SYSTEMD_AUTO_ENABLE says otherwise; the unit does not start
# without the device's key.
SYSTEMD_SERVICE:${PN} = "sysflow-agent.service"
INITSCRIPT_NAME = "sysflow-agent"
# Behind the network, before what is to be watched as far as that goes.
INITSCRIPT_PARAMS = "start 20 2 3 4 5 . stop 80 0 1 6 ."

CONFFILES:${PN} = "${sysconfdir}/sysflow/agent.toml"
FILES:${PN}-dev += "${datadir}/sysflow/probes.bpf.o"
RDEPENDS:${PN}-ptest += "coreutils"
