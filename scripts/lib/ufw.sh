# shellcheck shell=bash
# ufw's rules. In the record, a rule is a line as `ufw show added` prints it, without the first word.

source lib/step.sh

ufw_active() { have ufw && grep -q '^Status: active' < <(ufw status); }

# The rules that somebody added, without their comments.
ufw_present() { ufw show added | sed -n "s/ comment '.*//; s/^ufw //p"; }

# These two take lines of the record.

ufw_add() {
  local -a rule
  while read -ra rule; do ufw "${rule[@]}" >/dev/null; done <<<"$1"
}

# In ufw's syntax `delete` comes after `route`. Deleting a rule that is gone already is a warning, not an error.
ufw_remove() {
  local -a rule
  while read -ra rule; do
    case ${rule[0]:-} in
      '') ;;
      route) ufw --force route delete "${rule[@]:1}" >/dev/null ;;
      *) ufw --force delete "${rule[@]}" >/dev/null ;;
    esac
  done <<<"$1"
}
