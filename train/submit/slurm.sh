# Exit codes of a process: 0 done, 2 a person can mend it, 75 saved and stopped: start me again; others are failures.
set -u

# SLURM signals this shell, and only it, before the time limit (--signal=B:TERM). srun would kill its tasks at a TERM; scancel passes one on to them.
stopping=0
interrupted=0
stop() {
  stopping=1
  interrupted=1
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop TERM

# A signal interrupts `wait`, which then has to be called again.
wait_for() {
  while true; do
    interrupted=0
    wait "$1"
    code=$?
    if [ "$interrupted" = 0 ]; then break; fi
  done
}

# Only where SLURM itself goes on running us: a job that a person has cancelled stays cancelled.
requeue() {
  if [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

restarts=0
while true; do
  # Who has stopped leaves the others --wait seconds to end by themselves: they are saving too.
  srun --kill-on-bad-exit=0 --wait="$grace_seconds" "${command[@]}" &
  wait_for $!
  echo "the processes have exited with $code"
  if [ "$code" = 0 ] || [ "$code" = 2 ]; then exit "$code"; fi
  if [ "$code" = 75 ] || [ "$stopping" = 1 ]; then
    requeue
    exit "$code"
  fi
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "$max_restarts" ]; then
    echo "$max_restarts restarts are used up" >&2
    exit "$code"
  fi
done
