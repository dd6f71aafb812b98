#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes the Debian 13 root in which everything is built and the emulators run.
. "$(dirname "$0")/lib.sh"

PACKAGES="rustc rust-src rustfmt rust-clippy cargo bindgen clang-19 llvm-19 lld-19 gcc gcc-14 g++ make flex bison bc
libelf-dev libssl-dev libdw-dev pahole cpio kmod xz-utils zstd busybox-static musl-tools
qemu-system-x86 bochs bochsbios vgabios seabios isolinux syslinux-common xorriso
python3 ca-certificates git file libc6-dev dwarves binutils shellcheck linux-perf"

# mirror PATTERN: the site that this machine's own apt takes the release matching PATTERN from.
mirror() {
    apt-get indextargets --format '$(SITE) $(RELEASE) $(LABEL) $(ORIGIN)' 'Created-By: Packages' |
        awk -v p="$1" '$2 ~ p { print $1; exit }'
}

make_root() {
    command -v mmdebstrap >/dev/null || { apt-get update && apt-get install -y mmdebstrap; }
    local main security keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    main=$(mirror '^(bookworm|trixie)$')
    security=$(mirror '^(bookworm|trixie)-security$')
    [ -n "$main" ] || die "no Debian mirror found in this machine's apt sources"
    rm -rf "$LODGE_ROOT.new"
    # shellcheck disable=SC2086 # words, here and below
    {
        for suite in trixie trixie-updates trixie-backports; do
            echo "deb [signed-by=$keyring] $main $suite main"
        done
        if [ -n "$security" ]; then echo "deb [signed-by=$keyring] $security trixie-security main"; fi
    } | mmdebstrap --mode=root --variant=minbase --skip=check/empty \
        --include="$(echo $PACKAGES | tr ' ' ',')" \
        --aptopt='Acquire::Retries "5"' --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Languages "none"' \
        trixie "$LODGE_ROOT.new" -
    # shellcheck disable=SC2086
    printf '%s\n' $PACKAGES >"$LODGE_ROOT.new/etc/lodge-packages"
    # What was installed in the old one is to be installed again.
    rm -rf "$LODGE_ROOT" "$LODGE_CACHE"/stamp/kernel-[0-9]*
    mv "$LODGE_ROOT.new" "$LODGE_ROOT"
}

# missing_packages: those that the list has and the root does not: the list has grown, or the root is older.
missing_packages() {
    local package
    for package in $PACKAGES; do
        if ! grep -qxF "$package" "$LODGE_ROOT/etc/lodge-packages" 2>/dev/null; then echo "$package"; fi
    done
}

add_packages() {
    in_root sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends "$@"' sh "$@"
    printf '%s\n' "$@" >>"$LODGE_ROOT/etc/lodge-packages"
}

need_root
step root "2 minutes and 2.5 GB (plus the download)" "$(declare -f make_root | sha256sum)" make_root
mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -gt 0 ]; then
    rm -f "$LODGE_CACHE/stamp/packages"
    step packages "20 seconds" "" add_packages "${missing[@]}"
fi
