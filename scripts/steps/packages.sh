# shellcheck shell=bash
# Installs containerd and the tools that kube-proxy and kubeadm use. Installs and holds one exact version of kubelet,
# kubeadm and kubectl.
# Values: VERSION (1.37.2), REVISION (*), REPOSITORY_DEB and REPOSITORY_RPM (URLs that end with a slash), KEY (armored),
# KEY_URL (used if KEY is empty; if both are empty, the repository's own key is downloaded), MANAGE.

source lib/step.sh
source lib/packages.sh

readonly KEYRING=$ROOT/etc/apt/keyrings/kubeadm-ipvs.asc
readonly APT_SOURCES=$ROOT/etc/apt/sources.list.d
readonly APT_SOURCE=$APT_SOURCES/kubeadm-ipvs.sources
readonly YUM_REPO=$ROOT/etc/yum.repos.d/kubeadm-ipvs.repo
readonly YUM_KEY=$ROOT/etc/pki/rpm-gpg/kubeadm-ipvs.asc
readonly CNI_PLUGIN=$ROOT/opt/cni/bin/loopback
readonly CA_CERTIFICATES=$ROOT/etc/ssl/certs/ca-certificates.crt
readonly KUBE_PACKAGES=(kubelet kubeadm kubectl)
# crictl. kubeadm's package no longer depends on it since 1.32
# (kubernetes/release, cmd/krel/templates/latest/metadata.yaml).
readonly CRI_PACKAGE=cri-tools

fetching() { true; }

create() {
  need_record
  refuse_upgrade
  if [[ $MANAGE != true ]]; then
    check_versions
    store_version
    say "packages.manage is off: using the installed packages; kubeadm is $VERSION"
    return
  fi
  refuse_downgrade
  use_proxies
  case $(package_family) in
    deb) install_deb ;;
    rpm) install_rpm ;;
  esac
  check_versions
  systemctl enable --quiet kubelet
  store_version
  say "kubelet, kubeadm and kubectl $VERSION are installed and held"
}

# Upgrading a node takes more than new packages. The preview refuses another version unless cluster.manualUpgrades is
# true, and `pulumi up --target` can bypass that check.
refuse_upgrade() {
  local current
  [[ -e $HOME_DIR/node.done && -e $HOME_DIR/version ]] || return 0
  need_content "$HOME_DIR/version" "write the version that \`kubelet --version\` prints into it, without the v, and \
run the same command again"
  current=$(<"$HOME_DIR/version")
  if [[ $current == "$VERSION" ]]; then return; fi
  if [[ $(kubeadm version -o short) == "v$VERSION" && $(kubelet --version) == "Kubernetes v$VERSION" ]]; then
    say "somebody has upgraded this host from $current to $VERSION"
    return
  fi
  fail "$HOST is a node of a cluster at $current, and this program doesn't upgrade clusters yet" \
    "change cluster.kubernetesVersion back to $current, or upgrade this host by hand (kubeadm upgrade) and run the \
same command again; no package was changed"
}

# Packages of a node that somebody has upgraded by hand stay. So do those that the host had before. Packages that this
# program installed, on a host that isn't a node yet, may be replaced by older ones.
refuse_downgrade() {
  local package found newer='' newest=$VERSION
  for package in "${KUBE_PACKAGES[@]}"; do
    found=$(installed_version "$package")
    if [[ -z $found ]] || ! newer_than "$found" "$VERSION"; then continue; fi
    if ! is_node && grep -qxF "$package" < <(noted packages-added); then continue; fi
    newer+="${newer:+, }$package $found"
    if newer_than "$found" "$newest"; then newest=$found; fi
  done
  [[ -z $newer ]] || fail "newer packages than cluster.kubernetesVersion $VERSION are installed ($newer), and this \
program doesn't downgrade them" "if somebody has upgraded the cluster by hand, set cluster.kubernetesVersion to \
$newest and cluster.manualUpgrades to true; if not, install $VERSION yourself; no package was changed"
}

is_node() { [[ -e $HOME_DIR/node.done ]]; }
newer_than() { [[ $1 != "$2" && $(printf '%s\n' "$1" "$2" | sort -V | tail -n 1) == "$1" ]]; }

store_version() { put_file "$HOME_DIR/version" 0600 <<<"$VERSION"; }

check_versions() {
  local found
  found=$(kubeadm version -o short) ||
    fail "kubeadm doesn't run" "install kubeadm $VERSION on $HOST"
  have crictl || fail "crictl is missing" "install cri-tools on $HOST"
  # A distribution's package may provide kubernetes-cni but install its plugins where containerd doesn't look.
  [[ -x $CNI_PLUGIN ]] || fail "the CNI plugins aren't in /opt/cni/bin" "install kubernetes-cni on $HOST"
  [[ $found == "v$VERSION" ]] || fail "kubeadm is $found, not v$VERSION" \
    "set cluster.kubernetesVersion to the installed version, or let this program manage packages"
}

# sudo drops the login's proxy settings, so this reads them where the login gets them from. The package managers' own
# settings take precedence.
use_proxies() {
  local name value file=$ROOT/etc/environment
  for name in http_proxy https_proxy all_proxy no_proxy; do
    value=${name^^}
    value=${!name:-${!value:-}}
    if [[ -z $value && -r $file ]]; then
      value=$(sed -nE "s/^\s*(export\s+)?$name\s*=\s*[\"']?([^\"'#]*).*/\\2/Ip" "$file" | sed -E '$!d; s/\s+$//')
    fi
    [[ -z $value ]] || export "$name=$value"
  done
}

# repository_key DEFAULT_URL. No redirect may lead from HTTPS to HTTP, where anyone could replace the key; apt refuses
# that itself. It also uses apt's own proxies and logins.
repository_key() {
  local url=${KEY_URL:-$1} file=$HOME_DIR/repository.asc
  if [[ -n $KEY ]]; then
    printf '%s\n' "$KEY"
  elif [[ $(package_family) == deb ]]; then
    rm -f "$file"
    "$APT_HELPER" -qq -o Acquire::Retries=3 -o APT::Sandbox::User=root download-file "$url" "$file" >&2 || return 1
    cat "$file"
    rm -f "$file"
  else
    [[ -n ${https_proxy:-${all_proxy:-}} ]] || https_proxy=$(dnf_proxy)
    https_proxy=${https_proxy:-} curl -fsSL --proto '=https' --retry 3 --max-time 60 "$url"
  fi
}
readonly APT_HELPER=$ROOT/usr/lib/apt/apt-helper

dnf_proxy() { sed -nE 's/^proxy[[:space:]]*=[[:space:]]*([^_[:space:]]+).*/\1/p' "$ROOT/etc/dnf/dnf.conf" | tail -n 1; }

# put_key FILE DEFAULT_URL: writes the repository's key. If that can't be downloaded, the file stays unchanged.
put_key() {
  local key
  key=$(repository_key "$2") || fail "can't download the repository's signing key from ${KEY_URL:-$2}" \
    "fix the cause above, or check packages.repository and packages.key"
  [[ -n $KEY || $key == *'-----BEGIN PGP PUBLIC KEY BLOCK-----'* ]] ||
    fail "the response from ${KEY_URL:-$2} is not an armored key" \
      "check packages.repository and packages.key, and proxies between $HOST and that address"
  put_file "$1" 0644 <<<"$key"
}

deb_installed() { [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ?i* ]]; }

install_deb() {
  local tools=(containerd runc iptables ipset ipvsadm conntrack ethtool socat nftables kmod)
  local wanted=() package exact
  finish_dpkg
  for package in "${tools[@]}"; do
    if ! deb_installed "$package"; then
      # Docker's containerd package has another name and contains runc.
      if [[ $package == containerd || $package == runc ]] && have "$package"; then continue; fi
      wanted+=("$package")
    fi
  done

  if ! kube_debs_installed || ! have crictl; then
    if [[ $REPOSITORY_DEB$KEY_URL == *https://* && ! -s $CA_CERTIFICATES ]]; then
      apt_update
      install_debs ca-certificates
    fi
    add_apt_source
    apt_update
    exact=$(grep -m1 -x -- "$(version_pattern)" < <(apt-cache madison kubeadm | awk -F' *[|] *' '{print $2}')) ||
      fail "apt finds no kubeadm $VERSION-$REVISION in the repository $REPOSITORY_DEB" \
        "${unread:+fix what apt reports above, or }check packages.repository and cluster.kubernetesVersion"
    for package in "${KUBE_PACKAGES[@]}"; do wanted+=("$package=$exact"); done
    have crictl || wanted+=("$CRI_PACKAGE")
  elif ((${#wanted[@]})); then
    apt_update
  fi
  ((${#wanted[@]} == 0)) || install_debs "${wanted[@]}"
  if [[ $(apt-mark showhold | sed -nE '/^(kubelet|kubeadm|kubectl)$/p' | wc -l) != "${#KUBE_PACKAGES[@]}" ]]; then
    apt-mark hold "${KUBE_PACKAGES[@]}" >/dev/null
  fi
}

# If the host has a source for the repository already, that one is used: apt refuses two sources with different keys.
add_apt_source() {
  local file
  for file in "$ROOT/etc/apt/sources.list" "$APT_SOURCES"/*.{list,sources}; do
    if [[ -f $file && $file != "$APT_SOURCE" ]] && has_repository "$file"; then
      say "using the host's own source for $REPOSITORY_DEB: $file"
      remove_file "$APT_SOURCE"
      remove_file "$KEYRING"
      return
    fi
  done
  put_key "$KEYRING" "${REPOSITORY_DEB}Release.key"
  put_file "$APT_SOURCE" 0644 <<SOURCE
Types: deb
URIs: $REPOSITORY_DEB
Suites: /
Signed-By: $KEYRING
SOURCE
}

# has_repository FILE: whether a source in either of apt's formats has REPOSITORY_DEB and is enabled.
has_repository() {
  awk -v url="${REPOSITORY_DEB%/}" -v format="${1##*.}" '
    BEGIN { if (format == "sources") RS = "" }
    format != "sources" && $1 != "deb" { next }
    tolower($0) ~ /(^|\n)enabled: *(no|false|off|0)/ { next }
    {
      gsub(/(^|\n)#[^\n]*/, "")
      for (i = 1; i <= NF; i++) if ($i == url || $i == url "/") found = 1
    }
    END { exit !found }' "$1"
}

# The package version as a regular expression. `*` in REVISION matches any text.
version_pattern() {
  local text=$VERSION-$REVISION
  text=${text//./\\.}
  printf '%s' "${text//\*/.*}"
}

kube_debs_installed() {
  local package found
  for package in "${KUBE_PACKAGES[@]}"; do
    deb_installed "$package" || return 1
    found=$(dpkg-query -W -f '${Version}' "$package")
    [[ $found =~ ^$(version_pattern)$ ]] || return 1
  done
}

# A source that can't be read stops nothing by itself: it may be one that no package here comes from. `unread` is then
# set, for the message about a package that isn't found.
apt_update() {
  local output=''
  unread=
  wait_for 300 "another apt-get" apt_updated ||
    fail "apt-get update didn't get its lock within 5 minutes" "wait for the other apt-get on $HOST, or end it"
  [[ -n $output ]] || return 0
  unread=true
  grep -E '^(E|W):' <<<"$output" | head -n 5 >&2 || :
  say "apt can't read all package sources of this host (see above); continuing with the others"
}
unread=

# apt-get's option to wait for a lock doesn't apply to `update`. Also succeeds if waiting wouldn't help: `output` then
# says why.
apt_updated() {
  if output=$(apt-get update -o Acquire::Retries=3 -o APT::Update::Error-Mode=any 2>&1); then
    output=
  else
    [[ $output != *'Could not get lock'* ]]
  fi
}

# Records the new packages before installing them, so that they can be removed even if this is interrupted.
install_debs() {
  local options=(-y --no-install-recommends --allow-change-held-packages
    -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0)
  local plan package removed
  is_node || options+=(--allow-downgrades)
  plan=$(apt-get install -s "${options[@]}" "$@" 2>&1) || {
    grep -E '^(E:| )' <<<"$plan" | head -n 12 >&2 || :
    fail "apt can't install $*" "${unread:+fix what apt reports above, or }check the package sources of $HOST"
  }
  removed=$(awk '/^Remv / {print $2}' <<<"$plan" | xargs)
  [[ -z $removed ]] || fail "to install $*, apt would remove $removed" \
    "remove $removed on $HOST yourself if nobody needs it, then run the same command again; nothing was changed"
  while read -r package; do
    if ! grep -q "^$package|" "$RECORD/packages"; then note packages-added "$package"; fi
  done < <(awk '/^Inst / {print $2}' <<<"$plan")
  say "installing $*"
  apt-get install -qq "${options[@]}" "$@" >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 15 "$HOME_DIR/packages.log" >&2
    fail "apt failed to install $*" \
      "fix the cause above (full log: $HOME_DIR/packages.log on $HOST) and run the same command again"
  }
}

install_rpm() {
  local tools=(containerd iptables-nft ipset ipvsadm conntrack-tools ethtool socat nftables kmod iproute-tc)
  local wanted=() packages=() package keys key
  for package in "${tools[@]}"; do
    rpm -q --quiet --whatprovides "$package" || wanted+=("$package")
  done
  # Docker's containerd package has another name.
  if have containerd; then wanted=("${wanted[@]/#containerd/}"); fi
  [[ -n $KEY ]] || have curl || fail "curl is missing; it is needed to download the signing key of $REPOSITORY_RPM" \
    "install it on $HOST, or set packages.key to a file"
  put_key "$YUM_KEY" "${REPOSITORY_RPM}repodata/repomd.xml.key"
  put_file "$YUM_REPO" 0644 <<REPO
[kubeadm-ipvs]
name=Kubernetes
baseurl=$REPOSITORY_RPM
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=file://$YUM_KEY
exclude=kubelet kubeadm kubectl cri-tools kubernetes-cni
REPO
  # dnf imports the key into RPM's database, which lists it as a package.
  keys=$(rpm_keys "$YUM_KEY") || exit 1
  while read -r key; do
    if ! grep -qxF "gpg-pubkey|${key#gpg-pubkey-}" "$RECORD/packages"; then note keys-added "$key"; fi
  done <<<"$keys"
  for package in "${KUBE_PACKAGES[@]}"; do
    [[ $(rpm -q --qf '%{VERSION}' "$package" 2>/dev/null) == "$VERSION" ]] ||
      wanted+=("$package-$VERSION-$REVISION")
  done
  have crictl || wanted+=("$CRI_PACKAGE")
  # kubelet's dependency on kubernetes-cni can be satisfied by packages that claim to provide it, such as
  # containernetworking-plugins.
  [[ -x $CNI_PLUGIN ]] || wanted+=(kubernetes-cni)
  for package in "${wanted[@]}"; do [[ -z $package ]] || packages+=("$package"); done
  ((${#packages[@]} == 0)) || install_rpms "${packages[@]}"
}

# rpm_keys FILE: the names under which RPM's database lists the keys in FILE, found by importing them into a temporary
# database.
rpm_keys() {
  rm -rf "$HOME_DIR/keys"
  rpm --dbpath "$HOME_DIR/keys" --import "$1" || fail "RPM can't read the key of $REPOSITORY_RPM" "check packages.key"
  rpm --dbpath "$HOME_DIR/keys" -qa gpg-pubkey || fail "RPM can't list the keys of $REPOSITORY_RPM"
  rm -rf "$HOME_DIR/keys"
}

readonly SKIP_UNREADABLE='--setopt=*.skip_if_unavailable=1'

install_rpms() {
  local plan package unread=''
  local options=(-y --setopt=install_weak_deps=False --setopt=disable_excludes=kubeadm-ipvs)
  # Imports the keys that sign the repositories' metadata. `--assumeno` below would decline them, and find nothing.
  dnf makecache -y --repo=kubeadm-ipvs >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 5 "$HOME_DIR/packages.log" >&2
    fail "dnf can't read the repository $REPOSITORY_RPM" "fix the cause above, or check packages.repository"
  }
  # A repository that can't be read stops nothing by itself: it may be one that no package here comes from.
  dnf makecache -y "$SKIP_UNREADABLE" --setopt=retries=3 >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 5 "$HOME_DIR/packages.log" >&2
    fail "dnf can't read its repositories" "fix the repository named above on $HOST"
  }
  options+=("$SKIP_UNREADABLE")
  unread=$(sed -n 's/^Ignoring repositories: //p' "$HOME_DIR/packages.log")
  if [[ -n $unread ]]; then
    grep '^Error:' "$HOME_DIR/packages.log" | head -n 5 >&2 || :
    say "dnf can't read all repositories of this host (see above); continuing without $unread"
    options+=(--disablerepo="${unread// /}")
  fi
  # `--assumeno` prints the plan and always fails.
  plan=$(dnf install "${options[@]/-y/--assumeno}" "$@" 2>&1) || :
  if grep -q 'No match for argument: containerd' <<<"$plan"; then
    fail "no repository of $HOST has containerd${unread:+ (without the unreadable ones: $unread)}" \
      "on Enterprise Linux, add Docker's repository (its containerd.io is used), then run the same command again"
  fi
  grep -qE '^(Transaction Summary|Nothing to do)' <<<"$plan" || {
    tail -n 5 <<<"$plan" >&2
    fail "dnf can't install $*" "${unread:+fix the repositories $unread, or }check the repositories of $HOST, \
packages.repository and cluster.kubernetesVersion"
  }
  if is_node && grep -q '^Downgrading:' <<<"$plan"; then
    awk '/^[^ ]/ {on = /^Downgrading:/} on' <<<"$plan" >&2
    fail "to install $*, dnf would downgrade the packages above, which this program never does on a node" \
      "check packages.revision and cluster.kubernetesVersion; nothing was changed"
  fi
  while read -r package; do
    if ! grep -q "^$package|" "$RECORD/packages"; then note packages-added "$package"; fi
  done < <(planned_rpms <<<"$plan")
  say "installing $*"
  dnf install "${options[@]}" "$@" >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 15 "$HOME_DIR/packages.log" >&2
    fail "dnf failed to install $*" \
      "fix the cause above (full log: $HOME_DIR/packages.log on $HOST) and run the same command again"
  }
}

# Prints the packages that dnf's plan installs. Their lines begin with one space. If a name is long, its other columns
# are on the next line, which begins with more spaces.
planned_rpms() { awk '/^[^ ]/ {on = /^Installing/} on && /^ [^ ]/ {print $1}'; }
