#!/usr/bin/env bash
# Run a script of this repository on a Ray cluster and follow it to its end:
#
#   scripts/submit.sh jobs/train.py --config jobs/configs/paper.yaml --storage s3://bucket/prefix
#
# RAY_API_SERVER_ADDRESS: the cluster's job server (default http://127.0.0.1:8265, a head on this machine or a tunnel to
# one). Exit code 0 if the job succeeded, else 1. Ctrl-C leaves the job running. What .gitignore names does not travel.
set -euo pipefail
[[ $# -gt 0 ]] || { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
ray=.venv/bin/ray
[[ -x $ray ]] || ray=ray
id="fer_ray_$(date -u +%Y%m%d_%H%M%S)_$$"

"$ray" job submit --working-dir . --submission-id "$id" --no-wait -- python "$@" >/dev/null
echo "job $id"
trap 'printf "\nthe job goes on; follow it: ray job logs --follow %s   stop it: ray job stop %s\n" "$id" "$id" >&2; exit 130' INT

state() { "$ray" job status "$id" 2>&1 | grep -oE "SUCCEEDED|FAILED|STOPPED|RUNNING|PENDING" | head -1 || true; }

# following can end early when the line to the server breaks: only the status says that the job has ended
shown=0
while :; do
    now=$(state)
    lines=$("$ray" job logs "$id" 2>/dev/null | sed '/^Job submission server address/d' || true)
    if [[ -n $lines ]]; then
        tail -n "+$((shown + 1))" <<<"$lines"
        shown=$(wc -l <<<"$lines")
    fi
    case $now in
        SUCCEEDED) exit 0 ;;
        FAILED | STOPPED) echo "job $id: $now" >&2; exit 1 ;;
    esac
    sleep 2 || true
done
