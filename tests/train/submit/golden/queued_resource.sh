#!/usr/bin/env bash
# big: decoder_8b on v5p:8x8x16, 256 hosts of 4 chips.
# toklab config 4636924f0621cbc9 code c0dec0dec0dec0de
# toklab run "gs://bucket/runs/big"
# shellcheck disable=SC2016 # nothing in the values is to be expanded
name=big
at=(--project=project --zone=us-east5-a)
create_options=(--accelerator-type=v5p-2048 --runtime-version=v2-alpha-tpuv5 --node-id=big '--labels=toklab-config=4636924f0621cbc9,toklab-code=c0dec0dec0dec0de' --spot)
max_restarts=10
prepare_host='sudo gcloud auth configure-docker --quiet us-docker.pkg.dev && sudo docker pull --quiet us-docker.pkg.dev/project/images/toklab:1'
stop_host='sudo docker stop -t 300 big || true'
train_host='{ sudo docker stop -t 300 big; sudo docker rm --force big; } >/dev/null 2>&1; exec sudo docker run --name big --privileged --net host --env PYTHONUNBUFFERED=1 --env '"'"'NOTE=a '"'"'"'"'"'"'"'"'b'"'"'"'"'"'"'"'"' $c'"'"' us-docker.pkg.dev/project/images/toklab:1 toklab train decoder_8b --run-dir gs://bucket/runs/big --name '"'"'it'"'"'"'"'"'"'"'"'s mine'"'"' --seed 3'

# bash THIS         ask for the TPUs, train until the budget is spent, through preemptions and failures
# bash THIS stop    tell every host to save and stop
# bash THIS delete  give the TPUs back
#
# It may be interrupted: the hosts go on, and the next call stops them, which saves, and starts them again from there.
# Exit codes of a host: 0 done, 2 a person can mend it, 75 saved and stopped: start me again; others are failures.
set -euo pipefail

tpus() { gcloud compute tpus queued-resources "$1" "$name" "${at[@]}" "${@:2}"; }

on_every_host() { tpus ssh --node=all --worker=all --batch-size=all --command="$1"; }

state() { tpus describe --format='value(state.state)' 2>/dev/null || true; }

delete() { tpus delete --quiet --force; }

# Until the TPUs are ours; what was taken away or refused is asked for again.
get_tpus() {
  local now
  while true; do
    now=$(state)
    case "$now" in
      ACTIVE) return ;;
      "") tpus create "${create_options[@]}"; prepared=no ;;
      FAILED | SUSPENDED) delete ;;
      *) echo "$name: $now"; sleep 30 ;;
    esac
  done
}

train() {
  local restarts=0 code
  prepared=no
  while true; do
    get_tpus
    code=0
    if [ "$prepared" = no ]; then on_every_host "$prepare_host" || code=$?; fi
    if [ "$code" = 0 ]; then
      prepared=yes
      on_every_host "$train_host" || code=$?
    fi
    case "$code" in
      0 | 2) exit "$code" ;;
      75) echo "$name: stopped; starting again" ;;
      *)
        if [ "$(state)" = ACTIVE ]; then restarts=$((restarts + 1)); fi # else the TPUs were taken away
        echo "$name: failed with $code; starting again (restart $restarts of $max_restarts at most)"
        if [ "$restarts" -gt "$max_restarts" ]; then exit "$code"; fi
        ;;
    esac
  done
}

case "${1:-train}" in
  train) train ;;
  stop) on_every_host "$stop_host" ;;
  delete) delete ;;
  *) echo "usage: bash $0 [train | stop | delete]" >&2; exit 2 ;;
esac
