SUMMARY = "The few types of this image's kernel that sysflow-agent needs"
DESCRIPTION = "A BTF file of some kilobytes, which the agent reads instead of all of the kernel's \
types: that is the greater part of the memory it takes at its start."
HOMEPAGE = "https://sysflow.io"
SECTION = "kernel"

# They are the kernel's, which is not unpacked here.
LICENSE = "GPL-2.0-only"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/GPL-2.0-only;md5=801f80980d171dd6425610833a22dbe6"

# sysflow-agent brings the probes, whose object says which types they ask for.
DEPENDS = "bpftool-native sysflow-agent"

# With it the kernel deploys its types: see sysflow_kernel.bbclass.
REQUIRED_DISTRO_FEATURES = "sysflow"

inherit features_check

do_compile[depends] += "virtual/kernel:do_deploy"

# As sysflow-agent.
COMPATIBLE_HOST = "(aarch64|arm|x86_64).*-linux.*"
COMPATIBLE_HOST:libc-musl = "null"
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"

do_compile () {
    bpftool gen min_core_btf ${DEPLOY_DIR_IMAGE}/sysflow-kernel.btf ${B}/small.btf ${STAGING_DATADIR}/sysflow/probes.bpf.o
    # Types of another architecture or of a module have none of the probes' structures.
    grep -q -a task_struct ${B}/small.btf || bbfatal "sysflow-kernel.btf has not the types of a whole kernel"
}

do_install () {
    release=$(cat ${DEPLOY_DIR_IMAGE}/sysflow-kernel.release)
    install -D -m 0644 ${B}/small.btf ${D}${nonarch_libdir}/sysflow/btf/$release.btf
}

FILES:${PN} += "${nonarch_libdir}/sysflow/btf"
