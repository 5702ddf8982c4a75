# shellcheck shell=bash
# The nodes as the cluster sees them. Runs on the control plane, waits until all of them are Ready, and sets their
# labels and taints.
# Values: NODES (lines `name labels taints`: labels as key=value,..., taints as key=value:Effect,..., or `-` for none),
# READY_SECONDS, SUBJECT (not used here: a new value makes this step run again).

source lib/kubectl.sh

readonly READY='.status.conditions[?(@.type=="Ready")]'

locking() { false; }

create() {
  local names annotated name labels taints previous_labels previous_taints present
  mapfile -t names < <(cut -d ' ' -f 1 <<<"$NODES")
  wait_for "$READY_SECONDS" "${#names[@]} nodes to be Ready" all_ready || {
    not_ready >&2
    fail "not all nodes are Ready after $READY_SECONDS s; the lines above list those that aren't" \
      "check journalctl -u kubelet on them"
  }
  # One request for all nodes, because each takes seconds on a slow control plane.
  annotated=$(kube get nodes -o jsonpath='{range .items[*]}{.metadata.name}|{.metadata.annotations.kubeadm-ipvs/labels}|'\
'{.metadata.annotations.kubeadm-ipvs/taints}|{range .spec.taints[*]}{.key}:{.effect} {end}{"\n"}{end}')
  while read -r name labels taints; do
    # Not grep: a name may have dots.
    IFS='|' read -r _ previous_labels previous_taints present < <(
      awk -F '|' -v name="$name" '$1 == name' <<<"$annotated"
    )
    set_own "$name" label "$labels" "$previous_labels" "$present"
    set_own "$name" taint "$taints" "$previous_taints" "$present"
  done <<<"$NODES"
  say "${#names[@]} nodes are Ready"
}

# Waits for the whole time in one call; wait_for repeats it if the API server ends the watch early.
all_ready() {
  kubectl wait --for=condition=Ready --timeout="${READY_SECONDS}s" "${names[@]/#/node/}"
}

# Prints a line for each node that isn't Ready, with kubelet's reason.
not_ready() {
  local found
  found=$(kubectl --request-timeout=60s get nodes \
    -o jsonpath='{range .items[*]}{.metadata.name} {'"$READY"'.status} {'"$READY"'.message}{"\n"}{end}' 2>&1) || :
  awk -v host="$HOST: $STEP" '
    NR == FNR { if ($2 == "True") ready[$1]; else { name = $1; sub(/^[^ ]* [^ ]* ?/, ""); reason[name] = $0 } next }
    !($1 in ready) { print host ": " $1 ": " ($1 in reason ? reason[$1] : "the cluster has no such node") }
  ' <(printf '%s\n' "$found") <(printf '%s\n' "$NODES")
}

# set_own NODE VERB LIST PREVIOUS PRESENT: sets the labels or taints in LIST and removes the other ones in PREVIOUS, the
# content of an annotation. Labels and taints that somebody else has set are left alone. PRESENT lists the node's
# current taints.
set_own() {
  local node=$1 verb=$2 previous=$4 present=$5 annotation=kubeadm-ipvs/${2}s entry name names=() arguments=()
  local -a wanted=()
  [[ $3 == - ]] || IFS=, read -ra wanted <<<"$3"
  for entry in "${wanted[@]}"; do
    arguments+=("$entry")
    # A label is removed by its key, a taint by its key and effect.
    name=${entry%%=*}
    [[ $verb == label ]] || name=${name%%:*}:${entry##*:}
    names+=("$name")
  done
  for name in $previous; do
    # kubectl refuses to remove a taint that isn't there.
    if [[ " ${names[*]} " != *" $name "* && ($verb == label || " $present" == *" $name "*) ]]; then
      arguments+=("$name-")
    fi
  done
  [[ -n $previous || ${#names[@]} -gt 0 ]] || return 0
  # New names are stored before they are set, so that after an interruption they are still known as ours.
  kube annotate --overwrite node "$node" "$annotation=$previous ${names[*]}" >/dev/null
  ((${#arguments[@]} == 0)) || kube "$verb" --overwrite node "$node" "${arguments[@]}" >/dev/null
  kube annotate --overwrite node "$node" "$annotation=${names[*]}" >/dev/null
}
