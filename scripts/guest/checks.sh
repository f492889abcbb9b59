# Functions for the scripts that test packages in the machine of scripts/debian. Sourced, not run.
# shellcheck shell=bash disable=SC2317 # called by 'check'

set -uo pipefail
export DEBIAN_FRONTEND=noninteractive SYSTEMD_COLORS=0
failed=0

# check NAME COMMAND...: reports whether the command succeeds.
check() {
    local what=$1
    shift
    if "$@" >check.log 2>&1; then
        echo "ok      $what"
    else
        echo "FAILED  $what: $*"
        cat check.log
        failed=1
    fi
}

# within SECONDS COMMAND...: repeats the command until it succeeds; fails after SECONDS.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

install_version() { apt-get install -y -q --allow-downgrades ./"$1"/*.deb; }
daemon() { systemctl show --value --property MainPID "volt-netd@$1"; }
# journal UNIT: prints the unit's journal since the last mark.
mark() { cursor=$(journalctl -n 0 --show-cursor -q | sed -n 's/^-- cursor: //p'); }
journal() { journalctl --sync && journalctl -q -o cat --after-cursor "$cursor" -u "$1"; }
said() { journal "$1" | grep -F -- "$2"; }
not() { ! "$@"; }

dropped() { cat "/sys/class/net/$1/statistics/tx_dropped"; }

# is_new INTERFACE PID: succeeds if a process other than PID serves the interface.
is_new() { [ "$(daemon "$1")" != "$2" ] && [ "$(daemon "$1")" != 0 ]; }

# interfaces: installs the package's examples, and a copy of them for tap1.
interfaces() {
    cp /usr/share/doc/volt-netd/examples/systemd-networkd/* /etc/systemd/network/
    local kind
    for kind in netdev network link; do
        sed 's/tap0/tap1/g' "/etc/systemd/network/50-tap0.$kind" >"/etc/systemd/network/50-tap1.$kind"
    done
    networkctl reload
    check "interfaces exist" within 30 test -e /sys/class/net/tap0 -a -e /sys/class/net/tap1
    check "interfaces are ports of the bridge" within 30 test -e /sys/class/net/br0/brif/tap0
    check "interfaces have a long queue" within 30 grep -qx 10000 /sys/class/net/tap0/tx_queue_len
    ip -color=never -details tuntap show | grep '^tap0'
}

# ends: exits with the result of all checks.
ends() {
    [ $failed != 0 ] || echo "all checks passed"
    exit $failed
}
