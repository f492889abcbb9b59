# Shell functions that the scripts share. Sourced, not run; leaves the caller in the top of the repository,
# and answers --help for it with the comment at its head.
# shellcheck shell=bash

set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where everything that is made from Debian's packages goes; git ignores it.
guest_dir=$PWD/guest
export guest_dir

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# The comment at the head of the script: what it does, how it is called, how long that takes.
help() {
    sed -n '2,/^[^#]/ { /^# shellcheck/d; s/^# \{0,1\}//p }' "$script"
    exit 0
}

# wrong MESSAGE...: the script was called wrongly.
wrong() {
    say "$*; ${0##*/} --help says how it is called"
    exit 2
}

# For scripts that take none: no_arguments "$@".
no_arguments() { [ $# = 0 ] || wrong "'$1' is no option"; }

# number OPTION [VALUE...]: an option's value has to be a number of at least 1.
number() { [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] || wrong "$1 takes a number of at least 1"; }

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

# list_emulator: in $emulator_program, the emulator for machines with several processors; see scripts/setup.
# shellcheck disable=SC2034 # the caller's
list_emulator() {
    emulator_program=(qemu-system-x86_64)
    [ ! -e "$guest_dir/lab-qemu" ] ||
        emulator_program=("$guest_dir/lab-qemu/usr/bin/qemu-system-x86_64"
            -L "$guest_dir/lab-qemu/usr/share/qemu" -L /usr/share/seabios)
}

# What tests run with: guests are served by the release programs, and namespaces and TAPs need root; building
# does not.
test_environment() {
    export CARGO_TERM_PROGRESS_WHEN=never
    export VOLT_PROGRAMS=${CARGO_TARGET_DIR:-$PWD/target}/release
    [ "$(id -u)" = 0 ] || export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
    # A socket's path has 107 bytes at most.
    local tmpdir=${TMPDIR:-}
    if [ ${#tmpdir} -gt 60 ]; then
        say "tests make their sockets in /tmp: TMPDIR is too long for a socket's path"
        export TMPDIR=/tmp
    fi
}

# The test files of protocol-tests, in $guests those that boot guests: one guest at a time fills a small
# machine.
list_test_files() {
    local file
    scripted=() guests=()
    for file in protocol-tests/tests/*.rs; do
        file=$(basename "$file" .rs)
        case $file in
            lab_* | qemu_* | uml_*) guests+=("$file") ;;
            *) scripted+=("$file") ;;
        esac
    done
}

case ${1:-} in -h | --help) help ;; esac
