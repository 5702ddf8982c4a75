# shellcheck shell=bash
# Delivers the steps' scripts to a host. components/ssh_access.py runs it before a host's first step in a run, if the
# host doesn't have these scripts. It takes no lock, and changes nothing but the folder of scripts.
# Values: OWNER (see lib/step.sh), DIGEST (of all scripts), ARCHIVE (a compressed tar file of them, in base64).

set -euo pipefail
umask 077
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

run=${KUBEADM_IPVS_ROOT:-}/run/kubeadm-ipvs
home=${KUBEADM_IPVS_ROOT:-}/var/lib/kubeadm-ipvs

# The owner is missing if the claim was interrupted.
ours() {
  local owner
  [[ -e $home ]] || return 1
  [[ -e $home/owner ]] || return 0
  owner=$(tr -d '\0' <"$home/owner")
  # shellcheck disable=SC2153 # a value
  [[ $owner == "$OWNER" || $owner == "${OWNER% *}" ]]
}

deliver() {
  local folder=$run new=scripts.$DIGEST old
  # A host that isn't claimed gets them in /run: if it is refused, it stays as it was.
  if ours; then folder=$home; fi
  mkdir -p "$folder"
  cd "$folder"
  rm -rf "$new" "$new.new" scripts.new
  mkdir "$new.new"
  base64 -d <<<"$ARCHIVE" | tar -xzf - -C "$new.new"
  # Without it, a power cut could leave empty files.
  sync "$new.new"/*
  mv -T "$new.new" "$new"
  ln -s "$new" scripts.new
  mv -fT scripts.new scripts
  for old in scripts.*; do
    [[ $old == "$new" ]] || rm -rf "$old"
  done
  if [[ $folder == "$home" ]]; then rm -rf "$run"; fi
}

deliver
