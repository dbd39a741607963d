#!/bin/sh
# Stands in for `systemctl` in a virtual host: reads the unit file that lies there, runs exactly its ExecStart, starts it again as Restart and
# RestartSec say, and sends the unit's own signals: ExecReload, and at a stop SIGTERM to the main process alone, as KillMode=process says.
set -eu
verb=$1
shift
while [ "${1:-}" = --now ] || [ "${1:-}" = --quiet ]; do shift; done
unit=${1:-}
unit=${unit%.service}
file=/etc/systemd/system/$unit.service
[ -f "$file" ] || file=/usr/lib/systemd/system/$unit.service
state=/run/units/$unit
value() { sed -n "s/^$1=//p" "$file" | tail -n 1; }
refuse() { echo "systemctl: $*" >&2; exit 1; }

if [ "$verb" = daemon-reload ]; then exit 0; fi
case $verb in
is-active) [ -e "$state/main" ]; exit ;;
is-enabled) if [ -e "$state/enabled" ]; then echo enabled; exit 0; else echo disabled; exit 1; fi ;;
esac
[ -f "$file" ] || refuse "there is no unit $unit"
[ "$(value KillMode)" = process ] || refuse "$unit: only KillMode=process is known here"
[ "$(value Restart)" = always ] || refuse "$unit: only Restart=always is known here"
mkdir -p "$state"

case $verb in
enable | start)
    needed=$(value ConditionPathExists)
    [ -z "$needed" ] || [ -e "$needed" ] || refuse "$unit: $needed is missing"
    touch "$state/enabled"
    [ ! -e "$state/main" ] || exit 0
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
        status=0
        wait $! || status=$?
        [ "$status" = 0 ] || echo "$unit ended with status $status"
        [ "$status" != "$(value RestartPreventExitStatus)" ] || break
        [ -e "$state/stop" ] || sleep "$(value RestartSec)"
    done
    rm -f "$state/main"
    ;;
reload)
    MAINPID=$(cat "$state/main")
    eval "$(value ExecReload)"
    ;;
stop | disable)
    [ "$verb" = stop ] || rm -f "$state/enabled"
    touch "$state/stop"
    [ -e "$state/main" ] || exit 0
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
