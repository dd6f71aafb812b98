#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Checks what no test sees. Each check is a function and one line of the result; what is wrong is printed before it.
#   usage: lint.sh [CHECK...]
. "$(dirname "$0")/../env/lib.sh"
cd "$LODGE_SRC"

CHECKS="format spdx leftovers unsafe shell clippy warnings zones panics frames sizes"
# Denied where code is pure or safe: nothing there may panic or overflow, whatever a guest or a VMM does.
STRICT="arithmetic_side_effects indexing_slicing unwrap_used expect_used panic"
# What ends in a panic inside the kernel, as the symbols are called.
PANICS='core::(panicking|option::(unwrap|expect)_failed|result::unwrap_failed|cell::panic_|slice::.*_fail|str::slice_error_fail)'

sources() { git ls-files -co --exclude-standard -- "$@" | while read -r f; do if [ -f "$f" ]; then echo "$f"; fi; done; }
# list FILE: the first words of a list with comments.
list() { sed -E 's/#.*//; s/[[:space:]].*//; /^$/d' "$1"; }

# demangle: Rust's names as people write them, without the hash that marks a crate's build.
demangle() { in_root c++filt -s rust | sed -E 's/\[[0-9a-f]{16}\]//g'; }
have_module() { [ -f "$KO" ] || "$LODGE_SRC/tools/env/module.sh"; }

check_format() {
    in_root cargo fmt --all --check -- --color never &&
        in_root rustfmt --edition 2021 --color never --check rust/main.rs tools/fuzz/src/main.rs
}

check_spdx() {
    local file bad=0
    while read -r file; do
        if ! grep -q 'SPDX-License-Identifier: GPL-2.0' <(head -n 2 "$file"); then echo "$file: no SPDX line" && bad=1; fi
    done < <(sources '*.rs' '*.c' '*.h' '*.S' '*.sh' 'tools/env/vm/*' .ci/run Kbuild Makefile)
    return $bad
}

check_leftovers() {
    ! sources '*.rs' '*.c' '*.h' '*.S' '*.sh' Kbuild Makefile | grep -v '^tools/lint/' |
        xargs grep -nE '\b(TO''DO|FIX''ME|XXX)\b|\b(todo|unimplemented|dbg)!\('
}

# `unsafe` may stand only in the files that are listed, and a listed file has to need it.
check_unsafe() {
    local file bad=0 found
    found=$(sources '*.rs' | while read -r file; do
        # Not by a pipe: grep ends at the first hit, and what writes to it would fail.
        if grep -qE '\bunsafe\b' <(sed -E 's@//.*@@' "$file"); then echo "$file"; fi
    done)
    while read -r file; do
        echo "$file: unsafe code, but the file is not in unsafe-files.txt"
        bad=1
    done < <(comm -23 <(echo "$found" | sort) <(list unsafe-files.txt | sort))
    while read -r file; do
        echo "$file: in unsafe-files.txt, but it has no unsafe code"
        bad=1
    done < <(comm -13 <(echo "$found" | sort) <(list unsafe-files.txt | sort))
    return $bad
}

check_shell() {
    # Not asked for: what needs the sourced file, and the `$` meant for an inner shell.
    # shellcheck disable=SC2046 # file names without blanks
    in_root shellcheck -x -P tools/env -e SC1091,SC2016 $(sources '*.sh' .ci/run && grep -lE '^#!/bin/(ba)?sh' tools/env/vm/*)
}

check_clippy() {
    local lint args=(-D warnings)
    in_root cargo clippy --quiet --workspace --all-targets -- "${args[@]}" || return 1
    in_root cargo clippy --quiet --manifest-path tools/fuzz/Cargo.toml --locked --target-dir /cache/target/fuzz-lint -- "${args[@]}" || return 1
    # The pure modules, without their tests.
    for lint in $STRICT; do args+=(-D "clippy::$lint"); done
    in_root cargo clippy --quiet -p lodge-model --lib -- "${args[@]}"
}

# heads LOG: the warnings of a build log, one a line, rustc's with the place they are about.
heads() {
    awk -v pattern="$WARNING" '
        /^ *--> / && head != "" { sub(/^\/lodge\//, "", $2); sub(/rust\/\.\.\//, "", $2); print $2 ": " head; head = ""; next }
        head != "" && /^ *\|/ { print head; head = "" }
        $0 ~ pattern { if (head != "") print head; head = $0 }
        END { if (head != "") print head }' "$1"
}

# Every warning of rustc, gcc, objtool and modpost, from a build of the whole module.
check_warnings() {
    "$LODGE_SRC/tools/env/module.sh" --fresh || return 1
    ! heads "$LODGE_LOG/module-$(kernel_version).log" | grep .
}

# The same lints over the module as the kernel builds it; in the files that may be unsafe they are not asked for.
check_zones() {
    # What rustc itself says is in the other build's log; the host's clippy does not ask for lossless casts either.
    local lint flags='-Adead_code -Aunused -Aunreachable_pub -Aclippy::cast_lossless'
    for lint in $STRICT; do flags="$flags -Wclippy::$lint"; done
    "$LODGE_SRC/tools/env/module.sh" --lint CLIPPY=1 KRUSTFLAGS="$flags" || return 1
    # A path that is not below the checkout is of what bindgen generated.
    ! heads "$LODGE_LOG/module-$(kernel_version)-lint.log" | grep -vE '^/|: warning: [0-9]+ warnings? emitted|^warning: [0-9]+ warn' |
        awk -F: 'NR == FNR { may[$1] = 1; next } !($1 in may)' <(list unsafe-files.txt) - | grep .
}

# What of core's panics is linked in: nothing, or what panic-allow.txt gives a reason for.
check_panics() {
    local found
    have_module || return 1
    found=$(in_root nm -u "$(path_in_root "$KO")" | awk '{ print $2 }' | demangle | grep -E "$PANICS" | sort -u)
    comm -3 <(echo "$found" | sed '/^$/d') <(list panic-allow.txt | sort -u) >"$LODGE_LOG/panics"
    sed 's/^\t\(.*\)/\1: in panic-allow.txt, but not in kvm.ko: strike it out/; t; s/$/: a panic that panic-allow.txt does not explain/' "$LODGE_LOG/panics"
    [ ! -s "$LODGE_LOG/panics" ]
}

# Stack frames of more than 1 KiB: the kernel's stack is 16 KiB, and we are called deep in it.
check_frames() {
    have_module || return 1
    in_root objdump -d --no-show-raw-insn "$(path_in_root "$KO")" | demangle | awk '
        /^[0-9a-f]+ <.*>:$/ { name = substr($0, index($0, "<")) }
        match($0, /sub +\$0x[0-9a-f]+,%rsp/) {
            size = substr($0, RSTART, RLENGTH); sub(/.*0x/, "", size); sub(/,.*/, "", size)
            if (length(size) > 3 || (length(size) == 3 && size > "400")) { print name " has a frame of 0x" size " bytes"; bad = 1 }
        }
        END { exit bad }'
}

# Only told: a file grows past its soft cap for a reason, or is split.
check_sizes() { sources '*.rs' '*.c' '*.S' '*.sh' | xargs wc -l | awk '$1 > 600 && $2 != "total" { print "note: " $2 " has " $1 " lines" }'; }

need_root
"$LODGE_SRC/tools/env/root.sh"
need_kernel ""
KO=$LODGE_CACHE/module/$(kernel_version)/kvm.ko
# one CHECK: runs it and prints its line of the result.
one() {
    # A subshell of its own, so that an error in a check ends the check and not the run.
    if ("check_$1") >"$LODGE_LOG/lint-$1.log" 2>&1; then
        grep '^note: ' "$LODGE_LOG/lint-$1.log" || true
        echo "ok lint: $1"
    else
        head -n 60 "$LODGE_LOG/lint-$1.log"
        echo "not ok lint: $1 (everything is in $LODGE_LOG/lint-$1.log)"
    fi
}

# Three lanes side by side, as each check keeps one CPU busy: what builds the module and looks at it, the other build, and the rest.
modules='' zones='' rest=''
# shellcheck disable=SC2086 # words
if [ $# = 0 ]; then set -- $CHECKS; fi
for check in "$@"; do
    case $check in
    warnings | panics | frames) modules="$modules $check" ;;
    zones) zones=$check ;;
    *) rest="$rest $check" ;;
    esac
done
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
lane() { for check in "$@"; do one "$check"; done | tee -a "$lines"; }
# shellcheck disable=SC2086 # words
{ lane $modules & lane $zones & lane $rest; wait; }
passed=$(grep -c '^ok ' "$lines" || true) failed=$(grep -c '^not ok ' "$lines" || true)
echo "$passed passed, $failed failed, 0 skipped"
# A check that left no line would be a mistake of this script.
[ "$failed" = 0 ] && [ "$passed" = $# ]
