# Shell functions shared by the scripts. Sourced, not run. Changes to the top of the repository, and answers
# --help with the comment at the head of the calling script.
# shellcheck shell=bash

set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Everything made from Debian packages goes here; git ignores it.
guest_dir=$PWD/guest
export guest_dir

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Prints the comment at the head of the script: purpose, usage and duration.
help() {
    sed -n '2,/^[^#]/ { /^# shellcheck/d; s/^# \{0,1\}//p }' "$script"
    exit 0
}

# wrong MESSAGE...: reports a usage error.
wrong() {
    say "$*; see ${0##*/} --help"
    exit 2
}

# no_arguments "$@": for scripts without arguments.
no_arguments() { [ $# = 0 ] || wrong "unexpected argument '$1'"; }

# number OPTION [VALUE...]: requires a number of at least 1.
number() { [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] || wrong "$1 takes a number of at least 1"; }

# Runs a command as root: directly, or by sudo for another user.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: run it as root, or install sudo"
    fi
}

# Succeeds if this host's KVM can run a stock kernel; otherwise sets $kvm_reason. KVM without VMX or SVM
# emulates the guest's kernel mode and lacks instructions that every distribution's kernel uses.
kvm_usable() {
    kvm_reason=
    if ! grep -qwE 'vmx|svm' /proc/cpuinfo; then
        kvm_reason="the processor shows neither vmx nor svm"
    elif [ ! -e /dev/kvm ]; then
        kvm_reason="there is no /dev/kvm"
    fi
    [ -z "$kvm_reason" ]
}

# list_emulator: sets $emulator_program, the emulator for machines with several processors (see
# scripts/setup).
# shellcheck disable=SC2034 # the caller uses it
list_emulator() {
    emulator_program=(qemu-system-x86_64)
    [ ! -e "$guest_dir/lab-qemu" ] ||
        emulator_program=("$guest_dir/lab-qemu/usr/bin/qemu-system-x86_64"
            -L "$guest_dir/lab-qemu/usr/share/qemu" -L /usr/share/seabios)
}

# Environment of tests. Guests are served by the release programs. Running tests needs root for namespaces and
# TAPs; building does not.
test_environment() {
    export CARGO_TERM_PROGRESS_WHEN=never
    export VOLT_PROGRAMS=${CARGO_TARGET_DIR:-$PWD/target}/release
    [ "$(id -u)" = 0 ] || export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
    # A socket's path has at most 107 bytes.
    local tmpdir=${TMPDIR:-}
    if [ ${#tmpdir} -gt 60 ]; then
        say "tests create their sockets in /tmp: TMPDIR is too long for a socket's path"
        export TMPDIR=/tmp
    fi
}

# Lists the test files of protocol-tests. $guests has those that boot guests: a small machine runs one guest
# at a time.
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
