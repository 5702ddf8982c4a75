# shellcheck shell=bash
# containerd: its socket, its configuration, and the registry mirrors that this program configures. Files that somebody
# else has written or edited are never lost (docs/decisions/0031-containerds-configuration.md).

source lib/step.sh
source lib/record.sh

readonly CONTAINERD=unix:///run/containerd/containerd.sock
readonly CONTAINERD_FOLDER=$ROOT/etc/containerd
readonly CONTAINERD_CONFIG=$CONTAINERD_FOLDER/config.toml
readonly CONTAINERD_CERTS=$CONTAINERD_FOLDER/certs.d
# First line of each file that this program writes for containerd.
readonly OWN_MARKER='# kubeadm-ipvs'
# SHA-256 of all that this program has written to containerd's files, one per line.
readonly OWN_CONTENTS=$RECORD/containerd-files

# The host's own /etc/crictl.yaml may point to another runtime.
cri() { crictl --runtime-endpoint "$CONTAINERD" --image-endpoint "$CONTAINERD" "$@"; }

# put_containerd_file PATH TEXT: like put_file. Records the content first, so that `edited` can tell it from others'.
put_containerd_file() {
  remember_contents
  note "${OWN_CONTENTS##*/}" "$(sha256sum <<<"$2" | cut -c 1-64)"
  put_file "$1" 0644 <<<"$2"
}

# Earlier versions of this program stored only the checksum of each file's latest content. Call this before anything
# stores the checksum of a file that somebody has edited.
remember_contents() {
  [[ ! -e $OWN_CONTENTS ]] || return 0
  put_file "$OWN_CONTENTS" 0600 < <(
    if [[ -f $CHECKSUMS ]]; then
      awk -v folder="$CONTAINERD_FOLDER/" 'index(substr($0, 67), folder) == 1 {print $1}' "$CHECKSUMS"
    fi
  )
}

# edited PATH: whether the file has been edited since this program wrote it.
edited() {
  [[ -f $1 && -f $CHECKSUMS ]] && grep -qE "^[0-9a-f]{64}  $1\$" "$CHECKSUMS" || return 1
  if [[ ! -e $OWN_CONTENTS ]]; then
    if checksum_matches "$1"; then return 1; fi
  elif grep -qx "$(sha256sum <"$1" | cut -c 1-64)" "$OWN_CONTENTS"; then
    return 1
  fi
}

# set_aside PATH: renames a file that somebody has edited.
set_aside() {
  local aside
  aside=$1.edited-$(date -u +%Y%m%dT%H%M%SZ)
  mv -T "$1" "$aside"
  say "$1 was edited: the edited file is now $aside"
}

# Prints the configuration that a node needs.
runtime_config() {
  local version
  version=$(containerd --version)
  echo "$OWN_MARKER"
  case $(sed -nE 's/.* v?([0-9]+)\.[0-9]+\.[0-9]+.*/\1/p' <<<"$version") in
    1)
      cat <<TOML
version = 2
imports = ["/etc/containerd/conf.d/*.toml"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$SANDBOX_IMAGE"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
TOML
      ;;
    2)
      cat <<TOML
version = 3
imports = ["/etc/containerd/conf.d/*.toml"]

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$SANDBOX_IMAGE"

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = true
TOML
      ;;
    *) fail "unsupported version of containerd: $version" "install containerd 1.7 or 2" ;;
  esac
}

# config_problems FILE CONFIG: prints, one per line, the settings of CONFIG that containerd would not have with FILE and
# the files that FILE imports. containerd itself merges them: how, depends on its version.
config_problems() {
  local dump
  dump=$(containerd --config "$1" config dump 2>&1) || {
    echo "containerd can't read its configuration: $(tail -n 1 <<<"$dump")"
    return 0
  }
  # containerd 2.0 doesn't have bin_dirs, and uses /opt/cni/bin anyway.
  awk -F ' = ' '
    NR == FNR { found[$1] = $2; next }
    !($1 in found) && $1 !~ /\.bin_dirs$/ { print $1 " is missing: " $2 }
    $1 in found && found[$1] != $2 { print $1 " is " found[$1] ", not " $2 }
  ' <(toml_values <<<"$dump") <(toml_values <<<"$2")
}

# Prints the settings in TOML's tables on standard input as `TABLE.KEY = VALUE`, with double quotes around text and none
# in TABLE. Understands what containerd prints and what runtime_config does.
toml_values() {
  awk '
    { gsub(/^[ \t]+|[ \t]+$/, ""); gsub(/\047/, "\"") }
    /^#/ { next }
    /^\[/ { table = $0; gsub(/[][" \t]/, "", table); next }
    table && (place = index($0, "=")) {
      key = substr($0, 1, place - 1); value = substr($0, place + 1)
      gsub(/[" \t]/, "", key); sub(/^[ \t]+/, "", value)
      print table "." key " = " value
    }'
}

# Files with additional settings, which config.toml imports.
drop_ins() { compgen -G "$CONTAINERD_FOLDER/conf.d/*.toml" || :; }

# drop_in_problems FILE CONFIG: config_problems, which takes a moment on a slow host, if there are such files.
drop_in_problems() { [[ -z $(drop_ins) ]] || config_problems "$@"; }

# remove_mirrors [KEPT]: removes the mirrors that this program wrote, except those of registries in KEPT, whose lines
# have the form of MIRRORS: `registry url…`. A file that somebody has edited stays.
remove_mirrors() {
  local file registry
  for file in "$CONTAINERD_CERTS"/*/hosts.toml; do
    registry=${file%/hosts.toml}
    registry=${registry##*/}
    if [[ -e $file ]] && grep -qx "$OWN_MARKER" "$file" && ! edited "$file" &&
      ! grep -q "^$registry " <<<"${1:-}"; then
      remove_file "$file"
      remove_mirror_cas "$registry" 0
      rmdir --ignore-fail-on-non-empty "${file%/hosts.toml}"
    fi
  done
}

# remove_mirror_cas REGISTRY COUNT: removes the CA certificates of a registry's mirrors, except for the first COUNT
# mirrors.
remove_mirror_cas() {
  local file number
  for file in "$CONTAINERD_CERTS/$1"/kubeadm-ipvs-*.pem; do
    number=${file##*/kubeadm-ipvs-}
    if [[ -e $file ]] && ((${number%.pem} > $2)); then remove_file "$file"; fi
  done
}

# Before a host is restored: keeps what somebody has written into this program's files.
set_aside_edited_files() {
  local file
  for file in "$CONTAINERD_CONFIG" "$CONTAINERD_CERTS"/*/hosts.toml; do
    if edited "$file"; then
      set_aside "$file"
      [[ $file == "$CONTAINERD_CONFIG" ]] || remove_mirror_cas "$(basename "${file%/*}")" 0
    fi
  done
}

# After the packages are removed, on a host that didn't have the folder: removes it, except for what somebody else put
# there. rpm and dpkg leave the others here.
remove_containerd_folder() {
  remove_mirrors
  rm -f "$CONTAINERD_CONFIG" "$CONTAINERD_CONFIG".{rpmsave,rpmnew,dpkg-dist,dpkg-old,dpkg-new,ucf-dist}
  find "$CONTAINERD_FOLDER" -depth -type d -empty -delete
  [[ ! -d $CONTAINERD_FOLDER ]] ||
    say "$CONTAINERD_FOLDER stays: it has files that this program didn't create: $(find "$CONTAINERD_FOLDER" -type f |
      head -n 3 | xargs)"
}
