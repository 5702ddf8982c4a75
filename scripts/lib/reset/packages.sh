# shellcheck shell=bash
# Removes the packages that came with the cluster.

source lib/step.sh
source lib/record.sh
source lib/packages.sh

# Sets `remove` to the packages to remove. Runs before anything is changed, because it fails if a package that this
# program didn't install needs one of them.
choose_packages() {
  if [[ $(package_family) == deb ]]; then choose_debs; else choose_rpms; fi
}

remove_packages() {
  if [[ $(package_family) == deb ]]; then remove_debs; else remove_rpms; fi
}

choose_debs() {
  local package edited kept=()
  remove=()
  while read -r package; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ??* ]] || continue
    edited=$(edited_conffiles "$package" | xargs)
    if [[ -n $edited ]]; then
      say "$package stays: its configuration was edited ($edited)"
      kept+=("$package")
    else
      remove+=("$package")
    fi
  done < <(noted packages-added)
  ((${#remove[@]} == 0)) || finish_dpkg
  keep_dependencies
}

# edited_conffiles PACKAGE: prints the configuration files that somebody has edited, such as a firewall in
# /etc/nftables.conf. Purging the package would delete them. Packages that only Kubernetes uses don't count. (RPM keeps
# such files itself.)
edited_conffiles() {
  case $1 in containerd* | runc | kube* | cri-tools) return ;; esac
  local path sum
  while read -r path sum _; do
    if [[ -f $path && $sum != newconffile && $(md5sum <"$path") != "$sum "* ]]; then echo "$path"; fi
  done < <(dpkg-query -W -f '${Conffiles}\n' "$1")
}

# Drops from `remove` whatever other packages need: those in `kept`, and those installed since the claim, which apt
# would remove as well. Fails if they need a package that makes the host a node.
keep_dependencies() {
  local package needed removed_too before
  while ((${#remove[@]})); do
    before=${#remove[@]} removed_too=()
    while read -r package; do
      [[ -z $package || " ${remove[*]} " == *" $package "* ]] || removed_too+=("$package")
    done < <(apt-get purge -s -y --allow-change-held-packages "${remove[@]}" | awk '/^(Remv|Purg) / {print $2}')
    kept+=("${removed_too[@]}")
    ((${#kept[@]})) || return 0
    needed=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks \
      --no-replaces --no-enhances "${kept[@]}" | sed -nE 's/^([a-z0-9][^ :]*)(:.*)?$/\1/p')
    for package in "${!remove[@]}"; do
      grep -qxF "${remove[package]}" <<<"$needed" || continue
      case ${remove[package]} in containerd* | runc | kube*)
        fail "${kept[*]}, which this program didn't install, needs ${remove[package]}, which it would remove" \
          "remove ${kept[*]} on $HOST, then run again; nothing was changed" ;;
      esac
      say "${remove[package]} stays: ${kept[*]} needs it"
      unset "remove[package]"
    done
    ((${#removed_too[@]} == 0 || ${#remove[@]} < before)) ||
      fail "apt would also remove packages that this program didn't install: ${removed_too[*]}" \
        "remove them on $HOST, then run again; nothing was changed"
    kept=()
  done
}

remove_debs() {
  local package held
  if [[ $(recorded_enabled kubelet) != enabled ]] && systemctl is-enabled --quiet kubelet 2>/dev/null; then
    systemctl disable --quiet kubelet
  fi
  held=$(apt-mark showhold)
  for package in kubelet kubeadm kubectl; do
    if grep -qx "$package" <<<"$held" && ! grep -qx "$package" "$RECORD/holds"; then
      apt-mark unhold "$package" >/dev/null
    fi
  done
  if ((${#remove[@]})); then
    say "removing ${#remove[@]} packages that came with the cluster"
    apt-get purge -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${remove[@]}" \
      >"$HOME_DIR/packages.log" 2>&1 || {
      tail -n 15 "$HOME_DIR/packages.log" >&2
      fail "apt can't remove the packages" "fix the cause above on $HOST and run the same command again"
    }
  fi
  rm -f "$ROOT/etc/apt/sources.list.d/kubeadm-ipvs.sources" "$ROOT/etc/apt/keyrings/kubeadm-ipvs.asc"
  find /var/lib/apt/lists -name '*kubernetes*' -newer "$RECORD/packages" -delete
}

choose_rpms() {
  local package needed
  remove=()
  while read -r package; do
    if rpm -q --quiet "$package"; then remove+=("$package"); fi
  done < <(noted packages-added)
  # dnf would also remove the packages that depend on them.
  ((${#remove[@]} == 0)) || needed=$(rpm --erase --test "${remove[@]}" 2>&1) || {
    grep 'is needed by' <<<"$needed" >&2 || :
    fail "a package that this program didn't install needs one that it would remove" \
      "remove the package named above on $HOST, then run again; nothing was changed"
  }
}

remove_rpms() {
  local unit key
  if ((${#remove[@]})); then
    # Not every package's scripts stop and disable its services.
    for unit in kubelet containerd; do
      if [[ $(recorded_enabled "$unit") != enabled ]] && systemctl cat "$unit" >/dev/null 2>&1; then
        systemctl disable --quiet --now "$unit"
      fi
    done
    say "removing ${#remove[@]} packages that came with the cluster"
    dnf remove -y --setopt=clean_requirements_on_remove=False "${remove[@]}" >"$HOME_DIR/packages.log" 2>&1 || {
      tail -n 15 "$HOME_DIR/packages.log" >&2
      fail "dnf can't remove the packages" "fix the cause above on $HOST and run the same command again"
    }
  fi
  while read -r key; do
    if rpm -q --quiet "$key"; then rpm --erase "$key"; fi
  done < <(noted keys-added)
  rm -f "$ROOT/etc/yum.repos.d/kubeadm-ipvs.repo" "$ROOT/etc/pki/rpm-gpg/kubeadm-ipvs.asc"
  rm -rf "$ROOT"/var/cache/dnf/kubeadm-ipvs{-*,.solv,-filenames.solvx} "$ROOT"/var/cache/libdnf5/kubeadm-ipvs-*
}
