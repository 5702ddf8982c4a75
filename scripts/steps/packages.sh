# shellcheck shell=bash
# Packages: the container runtime, the tools that kube-proxy and kubeadm use, and kubelet,
# kubeadm and kubectl at one exact version, held.
# Values: VERSION (1.37.2), REVISION (*), REPOSITORY_DEB and REPOSITORY_RPM (URLs, with a slash at
# the end), KEY (armored text) or KEY_URL (empty: the key that lies in the repository), MANAGE.

source lib/step.sh

readonly KEYRING=/etc/apt/keyrings/kubeadm-ipvs.asc
readonly APT_LIST=/etc/apt/sources.list.d/kubeadm-ipvs.sources
readonly YUM_REPO=/etc/yum.repos.d/kubeadm-ipvs.repo
readonly YUM_KEY=/etc/pki/rpm-gpg/kubeadm-ipvs.asc
readonly KUBE_PACKAGES=(kubelet kubeadm kubectl)
# crictl: since 1.32 kubeadm's package doesn't bring it along (kubernetes/release, cmd/krel/templates/latest/metadata.yaml).
readonly CRI_PACKAGE=cri-tools

fetching() { true; }

create() {
  need_record
  refuse_upgrade
  if [[ $MANAGE != true ]]; then
    check_versions
    remember_version
    say "packages are the host's own business; kubeadm is at $VERSION"
    return
  fi
  case $(family) in
    deb) install_deb ;;
    rpm) install_rpm ;;
  esac
  check_versions
  systemctl enable --quiet kubelet
  remember_version
  say "kubelet, kubeadm and kubectl $VERSION are installed and held"
}

# A living node isn't upgraded by its packages alone. The preview refuses another version; a run of chosen steps
# (`pulumi up --target`) has none.
refuse_upgrade() {
  local made
  [[ -e $HOME_DIR/node.done && -e $HOME_DIR/version ]] || return 0
  made=$(<"$HOME_DIR/version")
  [[ $made == "$VERSION" ]] || fail "$HOST is a node of a cluster at $made, which this program doesn't upgrade yet" "set cluster.kubernetesVersion to $made again; nothing was changed here"
}
remember_version() { printf '%s\n' "$VERSION" | put_file "$HOME_DIR/version" 0600 || :; }

check_versions() {
  local seen
  seen=$(kubeadm version -o short) || fail "kubeadm doesn't run" "packages.manage is off: install kubeadm $VERSION on $HOST"
  have crictl || fail "crictl isn't here" "packages.manage is off: install cri-tools on $HOST"
  # A package of the distribution may pass for Kubernetes' own and put its plugins where containerd doesn't look.
  [[ -x /opt/cni/bin/loopback ]] || fail "the CNI plugins aren't in /opt/cni/bin" "install kubernetes-cni on $HOST"
  [[ $seen == "v$VERSION" ]] || fail "kubeadm is $seen, not v$VERSION" "set cluster.kubernetesVersion to what is installed, or let this program manage packages"
}

# repository_key DEFAULT_URL
repository_key() {
  if [[ -n $KEY ]]; then
    printf '%s\n' "$KEY"
  elif have curl; then
    curl -fsSL --retry 3 --max-time 60 "${KEY_URL:-$1}"
  else
    wget -nv -O- --tries=3 --timeout=60 "${KEY_URL:-$1}"
  fi
}

# put_key FILE DEFAULT_URL: the repository's key. Where it can't be had, the file stays as it is.
put_key() {
  local key
  key=$(repository_key "$2") || fail "the repository's signing key can't be had from ${KEY_URL:-$2}" \
    "the lines above say why; look at packages.repository and packages.key"
  [[ -n $KEY || $key == *'-----BEGIN PGP PUBLIC KEY BLOCK-----'* ]] || fail "${KEY_URL:-$2} answers with something else than an armored key" \
    "look at packages.repository and packages.key, and at what stands between $HOST and them"
  put_file "$1" 0644 <<<"$key" || :
}

installed_deb() { [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ?i* ]]; }

install_deb() {
  local tools=(containerd runc iptables ipset ipvsadm conntrack ethtool socat nftables kmod)
  local wanted=() package exact
  finish_dpkg
  for package in "${tools[@]}"; do
    if ! installed_deb "$package"; then
      # Docker's own build of containerd brings runc along, under another name.
      if [[ $package == containerd || $package == runc ]] && have "$package"; then continue; fi
      wanted+=("$package")
    fi
  done

  if ! kube_debs_done || ! have crictl; then
    if [[ -z $KEY ]] && ! have curl && ! have wget; then
      apt_update
      install_debs curl ca-certificates
    fi
    add_deb_source
    apt_update
    exact=$(grep -m1 -x -- "$(version_pattern)" < <(apt-cache madison kubeadm | awk -F' *[|] *' '{print $2}')) ||
      fail "the repository $REPOSITORY_DEB has no kubeadm $VERSION-$REVISION" "look at packages.repository and cluster.kubernetesVersion"
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

# apt refuses two sources of one repository that name different keys: one of the host's own is used as it is.
add_deb_source() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
    if [[ -f $file && $file != "$APT_LIST" ]] && has_repository "$file"; then
      say "the host has a source of its own for $REPOSITORY_DEB: $file"
      remove_file "$APT_LIST"
      remove_file "$KEYRING"
      return
    fi
  done
  put_key "$KEYRING" "${REPOSITORY_DEB}Release.key"
  printf 'Types: deb\nURIs: %s\nSuites: /\nSigned-By: %s\n' "$REPOSITORY_DEB" "$KEYRING" | put_file "$APT_LIST" 0644 || :
}

# has_repository FILE: one of apt's, in either of its two forms, with the repository and not turned off.
has_repository() {
  awk -v url="${REPOSITORY_DEB%/}" -v stanzas="${1##*.}" '
    BEGIN { if (stanzas == "sources") RS = "" }
    stanzas != "sources" && $1 != "deb" { next }
    tolower($0) ~ /(^|\n)enabled: *(no|false|off|0)/ { next }
    {
      gsub(/(^|\n)#[^\n]*/, "")
      for (i = 1; i <= NF; i++) if ($i == url || $i == url "/") found = 1
    }
    END { exit !found }' "$1"
}

# `*` in the revision stands for any text.
version_pattern() {
  local text=$VERSION-$REVISION
  text=${text//./\\.}
  printf '%s' "${text//\*/.*}"
}

kube_debs_done() {
  local package seen
  for package in "${KUBE_PACKAGES[@]}"; do
    installed_deb "$package" || return 1
    seen=$(dpkg-query -W -f '${Version}' "$package")
    [[ $seen =~ ^$(version_pattern)$ ]] || return 1
  done
}

apt_update() {
  local answer='' ours=''
  wait_for 300 "another apt-get" lists_read && [[ -z $answer ]] || {
    grep -E '^(E|W):' <<<"$answer" | head -n 5 >&2 || :
    [[ ! -e $APT_LIST ]] || ours=" (ours is $APT_LIST)"
    fail "apt-get update failed" "mend the package source named above on $HOST$ours"
  }
}

# Its own option to wait doesn't hold for the lists' lock. True also where waiting is no use: then `answer` says why.
lists_read() {
  if answer=$(apt-get update -o Acquire::Retries=3 -o APT::Update::Error-Mode=any 2>&1); then
    answer=
  else
    [[ $answer != *'Could not get lock'* ]]
  fi
}

# Writes down what will be new before it is: a host that is killed here still gives it back.
install_debs() {
  local options=(-y --no-install-recommends --allow-downgrades --allow-change-held-packages
    -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0)
  local plan package
  plan=$(apt-get install -s "${options[@]}" "$@" 2>&1) || {
    grep -E '^(E:| )' <<<"$plan" | head -n 12 >&2 || :
    fail "apt can't install $*" "look at the package sources of $HOST"
  }
  while read -r package; do
    if ! grep -q "^$package|" "$RECORD/packages"; then note packages-added "$package"; fi
  done < <(awk '/^Inst / {print $2}' <<<"$plan")
  say "installing $*"
  apt-get install -qq "${options[@]}" "$@" >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 15 "$HOME_DIR/packages.log" >&2
    fail "apt couldn't install $*" "the lines above say why; the whole log is $HOME_DIR/packages.log on $HOST"
  }
}

install_rpm() {
  local tools=(containerd iptables-nft ipset ipvsadm conntrack-tools ethtool socat nftables kmod iproute-tc)
  local wanted=() package keys key
  for package in "${tools[@]}"; do
    rpm -q --quiet --whatprovides "$package" || wanted+=("$package")
  done
  # Docker's own build of containerd.
  if have containerd; then wanted=("${wanted[@]/#containerd/}"); fi
  put_key "$YUM_KEY" "${REPOSITORY_RPM}repodata/repomd.xml.key"
  printf '[kubeadm-ipvs]\nname=Kubernetes\nbaseurl=%s\nenabled=1\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey=file://%s\nexclude=kubelet kubeadm kubectl cri-tools kubernetes-cni\n' \
    "$REPOSITORY_RPM" "$YUM_KEY" | put_file "$YUM_REPO" 0644 || :
  # dnf takes the key into RPM's database, which lists it as a package.
  keys=$(rpm_keys "$YUM_KEY") || exit 1
  while read -r key; do
    if ! grep -qxF "gpg-pubkey|${key#gpg-pubkey-}" "$RECORD/packages"; then note keys-added "$key"; fi
  done <<<"$keys"
  for package in "${KUBE_PACKAGES[@]}"; do
    [[ $(rpm -q --qf '%{VERSION}' "$package" 2>/dev/null) == "$VERSION" ]] || wanted+=("$package-$VERSION-$REVISION")
  done
  have crictl || wanted+=("$CRI_PACKAGE")
  # kubelet's own need of it is met by any package that says it provides it, as containernetworking-plugins does.
  [[ -x /opt/cni/bin/loopback ]] || wanted+=(kubernetes-cni)
  local needed=()
  for package in "${wanted[@]}"; do [[ -z $package ]] || needed+=("$package"); done
  ((${#needed[@]} == 0)) || install_rpms "${needed[@]}"
}

# rpm_keys FILE: the names under which RPM lists a file's keys, by a database that is thrown away.
rpm_keys() {
  rm -rf "$HOME_DIR/keys"
  rpm --dbpath "$HOME_DIR/keys" --import "$1" || fail "RPM can't read the key of $REPOSITORY_RPM" "look at packages.key"
  rpm --dbpath "$HOME_DIR/keys" -qa gpg-pubkey
  rm -rf "$HOME_DIR/keys"
}

install_rpms() {
  local plan package
  local options=(-y --setopt=install_weak_deps=False --setopt=disable_excludes=kubeadm-ipvs)
  # The keys that sign the repositories' lists come with the lists: the plan below would decline them, and be empty.
  dnf makecache -y >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 5 "$HOME_DIR/packages.log" >&2
    fail "dnf can't read its repositories" "mend the repository named above on $HOST (ours is $YUM_REPO)"
  }
  # `--assumeno` prints the plan and ends with a status of its own.
  plan=$(dnf install "${options[@]/-y/--assumeno}" "$@" 2>&1) || :
  if grep -q 'No match for argument: containerd' <<<"$plan"; then
    fail "no repository of $HOST has containerd" "Enterprise Linux has none: add Docker's repository, whose containerd.io is taken then, and run again"
  fi
  grep -qE '^(Transaction Summary|Nothing to do)' <<<"$plan" || {
    tail -n 5 <<<"$plan" >&2
    fail "dnf can't install $*" "look at the repositories of $HOST, packages.repository and cluster.kubernetesVersion"
  }
  while read -r package; do
    if ! grep -q "^$package|" "$RECORD/packages"; then note packages-added "$package"; fi
  done < <(rpms_planned <<<"$plan")
  say "installing $*"
  dnf install "${options[@]}" "$@" >"$HOME_DIR/packages.log" 2>&1 || {
    tail -n 15 "$HOME_DIR/packages.log" >&2
    fail "dnf couldn't install $*" "the lines above say why; the whole log is $HOME_DIR/packages.log on $HOST"
  }
}

# What dnf's plan installs anew. A row begins with one blank; a long name's other columns stand in a row below.
rpms_planned() { awk '/^[^ ]/ {on = /^Installing/} on && /^ [^ ]/ {print $1}'; }
