# For recipes of kernels on which sysflow-agent is to run: fails the build if the kernel has lost
# its types (BTF), and deploys them for sysflow-agent-btf.
#
# A kernel without pahole at hand, or with an option that BTF does not go with, drops
# CONFIG_DEBUG_INFO_BTF without a word; on the device the agent then ends with 78.

# Least size of the types of a whole kernel, bytes: less is a stub.
SYSFLOW_BTF_BYTES_MIN ?= "100000"

# Prints the size of the section .BTF of the ELF file $1 in hexadecimal; nothing if it has none.
sysflow_btf_size () {
    ${READELF} --section-headers --wide "$1" | sed -n 's/^ *\[ *[0-9]*\] \.BTF  *PROGBITS  *[0-9a-f]* [0-9a-f]* \([0-9a-f]*\) .*/\1/p'
}

# Ends the task with an error if the kernel $1 (vmlinux, ELF) has no types, $2 being its .config.
sysflow_btf_qa () {
    size=$(sysflow_btf_size "$1")
    if [ -z "$size" ]; then
        asked=$(grep "CONFIG_DEBUG_INFO_BTF[= ]" "$2" || echo "CONFIG_DEBUG_INFO_BTF is not known")
        bbfatal "$1 has no types (section .BTF), and $2 says '$asked': sysflow-agent cannot run on it. CONFIG_DEBUG_INFO_BTF needs pahole-native (KERNEL_DEBUG = \"True\" for linux-yocto), debug information (DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT), and no DEBUG_INFO_REDUCED, DEBUG_INFO_SPLIT or GCC_PLUGIN_RANDSTRUCT"
    fi
    if [ "$(printf '%d' "0x$size")" -lt "${SYSFLOW_BTF_BYTES_MIN}" ]; then
        bbfatal "$1 has types (section .BTF) of 0x$size bytes only: these are not a kernel's. Look for a warning of pahole in the log of do_compile"
    fi
}

sysflow_btf_check[doc] = "Fails if the kernel that was built has no types (BTF)"
sysflow_btf_check () {
    sysflow_btf_qa "${B}/vmlinux" "${B}/.config"
}
do_compile[postfuncs] += "sysflow_btf_check"

do_deploy:append () {
    # objcopy writes its input anew if it is not given another place.
    ${OBJCOPY} --dump-section .BTF="${DEPLOYDIR}/sysflow-kernel.btf" "${B}/vmlinux" "${B}/sysflow-discarded"
    rm "${B}/sysflow-discarded"
    install -m 0644 "${B}/include/config/kernel.release" "${DEPLOYDIR}/sysflow-kernel.release"
}
