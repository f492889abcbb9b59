# Shell functions that the scripts share. Sourced, not run; leaves the caller in the top of the repository.
# shellcheck shell=bash

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where everything that is made from Debian's packages goes; git ignores it.
guest_dir=$PWD/guest
export guest_dir

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Runs a command as root: directly, or by sudo for anybody else.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: run it as root, or install sudo"
    fi
}

# Whether this host's KVM can run a stock kernel. One without VMX or SVM emulates guest kernel mode, and lacks
# instructions that every distribution's kernel uses; the reason is left in $kvm_reason.
kvm_usable() {
    kvm_reason=
    if ! grep -qwE 'vmx|svm' /proc/cpuinfo; then
        kvm_reason="the processor shows neither vmx nor svm"
    elif [ ! -e /dev/kvm ]; then
        kvm_reason="there is no /dev/kvm"
    fi
    [ -z "$kvm_reason" ]
}
