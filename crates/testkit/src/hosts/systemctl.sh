#!/bin/sh
# Stands in for `systemctl` in a virtual host: reads the unit file that lies there, runs exactly its ExecStart, starts it again as Restart and
# RestartSec say, and sends the unit's own signals: ExecReload, and at a stop SIGTERM to the main process alone, as KillMode=process says.
set -eu
verb=$1
shift
[ "${1:-}" = --now ] && shift
unit=${1:-}
file=/etc/systemd/system/$unit.service
state=/run/units/$unit
value() { sed -n "s/^$1=//p" "$file" | tail -n 1; }
refuse() { echo "systemctl: $*" >&2; exit 1; }

if [ "$verb" = daemon-reload ]; then exit 0; fi
[ -f "$file" ] || refuse "there is no unit $unit"
[ "$(value KillMode)" = process ] || refuse "$unit: only KillMode=process is known here"
[ "$(value Restart)" = always ] || refuse "$unit: only Restart=always is known here"
mkdir -p "$state"

case $verb in
enable | start)
    needed=$(value ConditionPathExists)
    [ -z "$needed" ] || [ -e "$needed" ] || refuse "$unit: $needed is missing"
    rm -f "$state/stop"
    setsid "$0" run "$unit" < /dev/null > "$state/log" 2>&1 &
    ;;
run)
    cd /
    export HOME=/root
    umask "$(value UMask)"
    while [ ! -e "$state/stop" ]; do
        (
            set -a
            variables=$(value EnvironmentFile)
            [ -z "$variables" ] || . "$variables"
            set +a
            eval "exec $(value ExecStart)"
        ) &
        echo $! > "$state/main"
        wait $! || echo "$unit ended with status $?"
        [ -e "$state/stop" ] || sleep "$(value RestartSec)"
    done
    rm -f "$state/main"
    ;;
reload)
    MAINPID=$(cat "$state/main")
    eval "$(value ExecReload)"
    ;;
stop)
    touch "$state/stop"
    kill -TERM "$(cat "$state/main")"
    patience=$(value TimeoutStopSec)
    while [ -e "$state/main" ]; do
        [ "$patience" -gt 0 ] || refuse "$unit did not stop in time"
        patience=$((patience - 1))
        sleep 1
    done
    ;;
*) refuse "$verb is not known here" ;;
esac
