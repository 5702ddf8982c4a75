# shellcheck shell=bash
# Reads the record of the host's original state, which the claim creates. Its files `present` and `absent` list the
# paths that existed and those that didn't; files.tar has copies of small files; `units` has a line `UNIT ENABLED
# ACTIVE` for each service.

source lib/step.sh

was_absent() { grep -qx "$1" "$RECORD/absent"; }

# Whether files.tar has a copy of the file.
file_recorded() { grep -qx "${1#/}" < <(tar -tf "$RECORD/files.tar"); }

# restore_file PATH: restores the recorded file, or removes the current one if there was none.
restore_file() {
  if was_absent "$1"; then
    rm -rf "$ROOT$1"
  else
    tar --numeric-owner -xpf "$RECORD/files.tar" -C "$ROOT/" "${1#/}"
  fi
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
