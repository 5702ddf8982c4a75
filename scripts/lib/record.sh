# shellcheck shell=bash
# Reads the record of the host's original state, which the claim creates. Its files `present` and `absent` list the
# paths that existed and those that didn't; files.tar has copies of small files; `units` has a line `UNIT ENABLED
# ACTIVE` for each service.

source lib/step.sh

was_absent() { grep -qx "$1" "$RECORD/absent"; }

# The paths in files.tar, without the first slash. Those of folders end with one.
copied_files() { tar --quoting-style=literal -tf "$RECORD/files.tar"; }

# Whether files.tar has a copy of the file.
file_recorded() { grep -qxF -- "${1#/}" < <(copied_files); }

# restore_file PATH: restores the recorded file, or what was recorded in a folder. Removes the current one if there was
# none.
restore_file() {
  local copied path
  if was_absent "$1"; then
    rm -rf "$ROOT$1"
    return
  fi
  copied=$(copied_files)
  while IFS= read -r path; do
    if [[ $path == "${1#/}" || $path == "${1#/}"/* ]]; then extract "$path"; fi
  done <<<"$copied"
}

# Restores the recorded files that don't exist, such as those that a package removed with its folder.
restore_missing_files() {
  local copied path
  copied=$(copied_files)
  while IFS= read -r path; do
    [[ -z $path || -e $ROOT/$path || -L $ROOT/$path ]] || extract "$path"
  done <<<"$copied"
}

# extract PATH: restores one file of files.tar, or a folder without its files. A file by rename: tar would first empty
# the old one, and leave half of the new one if the disk is full.
extract() {
  local options=(--numeric-owner --no-recursion -xpf "$RECORD/files.tar") new=$ROOT/${1%/*}/.kubeadm-ipvs.restored error
  if [[ $1 == */ ]]; then
    error=$(tar "${options[@]}" -C "$ROOT/" "$1" 2>&1) || write_failed "$ROOT/$1" "$error"
    return 0
  fi
  error=$({
    rm -rf "$new" && mkdir -p "$new" && tar "${options[@]}" -C "$new" "$1" &&
      { [[ ! -f $new/$1 ]] || sync "$new/$1"; } && mv -fT "$new/$1" "$ROOT/$1" && rm -r "$new"
  } 2>&1) || {
    rm -rf "$new" || :
    write_failed "$ROOT/$1" "$error"
  }
}

restore_file_if_present() {
  if grep -qx "$1" "$RECORD/present"; then restore_file "$1"; fi
}

# Whether the host had the service, from any package or none, running or not.
unit_recorded() {
  awk -v unit="$1" '$1 == unit && NF == 3 && $2 != "not-found" {found = 1} END {exit !found}' "$RECORD/units"
}
recorded_enabled() { awk -v unit="$1" '$1 == unit {print $2}' "$RECORD/units"; }
recorded_active() { awk -v unit="$1" '$1 == unit {print $NF}' "$RECORD/units"; }
