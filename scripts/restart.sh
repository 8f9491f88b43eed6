#!/bin/sh
# Runs a command again and again until it is done:
#
#   scripts/restart.sh python -m vit_jax train --config=... --workdir=...
#
# It goes by the exit code: 0 (done), 2 (a mistake that only you can fix) and
# 130 (Ctrl-C) end it; 42 (preempted after saving) starts the command again at
# once; anything else after a pause that doubles from FIRST_PAUSE to LONGEST_PAUSE
# seconds and is short again after a run of GOOD_RUN seconds. After MOST_FAILURES
# in a row without such a run it gives up.
#
# SIGTERM goes on to the command, which saves, and ends the loop with its code.
# With PID_FILE set, the process id of the loop is written there.

FIRST_PAUSE=${FIRST_PAUSE:-10}
LONGEST_PAUSE=${LONGEST_PAUSE:-600}
GOOD_RUN=${GOOD_RUN:-600}
MOST_FAILURES=${MOST_FAILURES:-20}

if [ $# -eq 0 ]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
[ -z "$PID_FILE" ] || echo $$ >"$PID_FILE"

child=
stopped=
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM

pause=$FIRST_PAUSE
failures=0
while :; do
  began=$(date +%s)
  # It may have come between two commands. 143 is the code of a process it ends.
  [ -z "$stopped" ] || exit "${code:-143}"
  "$@" &
  child=$!
  wait "$child"
  code=$?
  # A signal interrupts `wait`; the command is still saving then.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  child=
  case $code in
    0 | 2 | 130) exit $code ;;
  esac
  [ -z "$stopped" ] || exit $code
  if [ $code -eq 42 ] || [ $(($(date +%s) - began)) -ge "$GOOD_RUN" ]; then
    pause=$FIRST_PAUSE
    failures=0
  fi
  if [ $code -eq 42 ]; then
    echo "restart.sh: preempted (42), starting again" >&2
    continue
  fi
  failures=$((failures + 1))
  if [ $failures -ge "$MOST_FAILURES" ]; then
    echo "restart.sh: $failures failures in a row, the last with $code" >&2
    exit $code
  fi
  echo "restart.sh: ended with $code, starting again in $pause s" >&2
  sleep "$pause" &
  child=$!
  wait "$child"
  child=
  [ -z "$stopped" ] || exit $code
  pause=$((pause * 2))
  [ $pause -le "$LONGEST_PAUSE" ] || pause=$LONGEST_PAUSE
done
