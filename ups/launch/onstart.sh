#!/bin/sh
# What a rented machine runs, at every start: clone, install, hand over to ups/launch/instance.py, destroy itself.
# The launcher writes `set -- OVERRIDES` at its top and leaves out comments and half of the indentation. Values come in
# the environment: UPS_REPO, UPS_BRANCH, UPS_COMMIT, UPS_DEADLINE (seconds since 1970), UPS_SHUTDOWN (1 or nothing),
# UPS_ON_FAILURE (destroy | hold) and what instance.py reads. Vast gives CONTAINER_ID and CONTAINER_API_KEY.
# UPS_FOLDER and UPS_PAUSE (seconds) are for rehearsals. Nothing outside of `main` needs a disk that can be written.
cd /
W=${UPS_FOLDER:-/root/ups} P=${UPS_PAUSE:-4} T=${UPS_DEADLINE:-0}
# The Python that has torch is conda's, whatever else the machine has; in a rehearsal it is the user's. L is the
# container's own log, which is what the service shows.
[ "$UPS_FOLDER" ] || PATH=/opt/conda/bin:$PATH L=/proc/1/fd/1
U=${VAST_URL:-https://console.vast.ai}/api/v0/instances/$CONTAINER_ID/
export P U
say() { echo "ups $(date -u +%T) $*"; }

# Sleeps until the time in its first argument, then destroys this instance until a read says that it is gone. A 404
# alone is no proof: a bad key answers it too, but so may the key of an instance that is gone. Nor is null, which an
# instance that is there may answer too, unless a destruction was taken. Every sixth try is a stop,
# which at least ends the GPU's bill. While a file of its further arguments is there, the disk holds results that are
# saved nowhere else: stopped, not destroyed; a start then saves them, and ends it.
END='
import json, os, sys, time, urllib.request as web
env = os.environ.get
def say(t):
  try: print("ups", t, flush=True)
  except OSError: pass
def call(m, body=None):
  try:
    r = web.urlopen(web.Request(env("U"), body, {"Authorization": "Bearer " + env("CONTAINER_API_KEY"),
      "Content-Type": "application/json"}, method=m), timeout=20)
  except web.HTTPError as e: r = e
  except Exception as e: return {"error": e}
  try: return dict(json.load(r))
  except Exception: return {"error": r.status}
n, ok, p = 0, 0, float(env("P")) + .1
for k in "ID", "API_KEY":
  if not env("CONTAINER_" + k): sys.exit(say("CONTAINER_%s not set - cannot auto-shutdown" % k))
while time.time() < float(sys.argv[1]): time.sleep(1)
while 1:
  n += 1
  keep = any(map(os.path.exists, sys.argv[2:]))
  stop = keep or n % 6 == 0
  a = call("PUT", b"{\"state\":\"stopped\"}") if stop else call("DELETE", b"{}")
  time.sleep(p)
  b = call("GET")
  e = b.get("error")
  ok |= a.get("success") is True and not stop
  if e == "no_such_instance" or ok and not b.get("instances", 1): sys.exit(say("destroyed"))
  if not ok or e != "auth_error":
    say("STILL BILLED (%s, %s), end it: vastai %s instance %s" % (a.get("error"), e,
      ("destroy", "start")[keep], env("CONTAINER_ID")))
  time.sleep(p * 2 ** min(n - 1, 6))
'
retry() {
  for k in 1 2 4 8; do "$@" && return; say "$1 failed"; sleep $((k*P)); done
  "$@"
}
clone() {
  [ -d repo ] && return
  command -v git >/dev/null || { apt-get -qq update && apt-get -qq install -y git; } || return
  rm -rf new && git init -q new || return
  # shellcheck disable=SC2016 # git's own shell reads the token, from the environment
  set -- -C new -c credential.helper='!f() { echo username=git; echo "password=$GIT_TOKEN"; }; f' fetch -q "$UPS_REPO"
  git "$@" "$UPS_COMMIT" || git "$@" "$UPS_BRANCH"
  git -C new checkout -q "$UPS_COMMIT" && mv new repo
}
# The image's torch stays. What only the launcher and the tests need is left out, by the beginnings of the names.
install() {
  python3 -c 'import torch' 2>/dev/null && t='|torch[^-._[:alnum:]]'
  grep -vE "^(vastai|pytest|hypo|ruff|shell$t)" repo/requirements.txt >need && python3 -m pip install -q -r need
}
# A full disk may end the log; all the rest goes on without it.
main() {
  trap "" PIPE
  exec 9<.
  flock -n 9 || { say "already running"; return; }
  end=complete
  if [ -e saved ] || { retry clone && retry install && (cd repo && python3 -m ups.launch.instance "$W" "$@"); }; then
    touch saved
  else
    end="failed ($?)"
    [ "$UPS_ON_FAILURE" = destroy ] || UPS_SHUTDOWN=
  fi
  [ "$UPS_SHUTDOWN" ] || { say "Training $end - kept until the deadline"; return; }
  say "Training $end - auto-shutdown in 10 seconds..."
  sleep $((P*5/2))
  python3 -c "$END" 0 unsaved busy
}
# The dead-man timer, in a session of its own: it outlives this script. A machine that is started after its deadline
# with a run that is not saved has a quarter of an hour for that; one that has no folder to work in ends now. Without
# python3 nothing here can end the bill.
# shellcheck disable=SC2086 # $L is one word or none
{ python3 -V || say "STILL BILLED: no python3"; } | tee $L
[ ! -e "$W/run" ] || [ -e "$W/saved" ] || [ "$T" -ge $((N = $(date +%s) + 900)) ] || T=$N
mkdir -p "$W" || [ -z "$UPS_SHUTDOWN" ] || T=0
# shellcheck disable=SC2086
setsid python3 -c "$END" "$T" "$W/unsaved" 2>&1 | tee $L &
# shellcheck disable=SC2086
cd "$W" && main "$@" 2>&1 | tee -a log $L
: end of onstart.sh
