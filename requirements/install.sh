#!/usr/bin/env bash
# Creates .venv and installs the lock that fits this machine: install.sh [dev]
# KIND=cpu or KIND=gpu overrides the choice; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
with_dev=${1:-}

find_python() {
    for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "raglane needs Python 3.11, 3.12 or 3.13; install one (Debian: apt-get install python3 python3-venv) or set PYTHON=..." >&2
    return 1
}

kind=${KIND:-}
if [ -z "$kind" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then kind=gpu; else kind=cpu; fi
fi
digest() { cat "$@" pyproject.toml requirements/install.sh | sha256sum | cut -d' ' -f1; }

locks=("requirements/$kind.lock")
wanted=$(digest "${locks[@]}")
installed=("$wanted")
if [ "$with_dev" = dev ]; then
    # It adds to the other lock and changes nothing in it, so a plain setup is content with the outcome too.
    locks+=(requirements/dev.lock)
    wanted=$(digest "${locks[@]}")
    installed+=("$wanted")
fi

# The stamp says what is installed, so that a second `make` costs nothing.
stamp="$venv/.installed"
if [ -f "$stamp" ] && grep -qx "$wanted" "$stamp"; then exit 0; fi

log="$venv/install.log"
# pip's own output goes to the log; the terminal gets a count and the package at hand.
run_pip() {
    local what=$1
    shift
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-compile "$@" 2>&1 | tee -a "$log" |
        awk -v what="$what" -v tty="$([ -t 1 ] && echo 1 || echo 0)" '
            BEGIN { printf "  %s ...%s", what, tty ? "" : "\n"; fflush() }
            /^(Collecting|Requirement already satisfied)/ { n++; if (tty) printf "\r  %s: %d %s\033[K", what, n, $2; else if (n % 25 == 0) print "  " what ": " n " packages" ; fflush() }
            /^Installing collected/ { if (tty) printf "\r  %s: unpacking %d packages\033[K", what, n + 0; else print "  " what ": unpacking " n + 0 " packages"; fflush() }
            END { if (tty) printf "\n" }'; then
        return 1
    fi
}

python=$(find_python)
# An environment whose making was cut off has an interpreter, but no pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || {
        echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2
        exit 1
    }
fi
# Until all is in, nothing is as any stamp says.
rm -f "$stamp"
: >"$log"
echo "Installing the $kind lock into $venv (a few minutes the first time; details in $log)"
if [ "$kind" = cpu ] && [ "$(uname -s)" = Linux ]; then
    torch=$(grep '^torch==' requirements/cpu.lock | cut -d' ' -f1)
    # The registry's Linux build of torch is the CUDA one; the CPU build has a version of its own.
    run_pip torch "$torch+cpu" 2>/dev/null ||
        run_pip "torch from PyTorch's CPU index" --index-url https://download.pytorch.org/whl/cpu "$torch+cpu" || {
        tail -n 5 "$log" >&2
        exit 1
    }
fi
lock_args=()
for lock in "${locks[@]}"; do lock_args+=(-r "$lock"); done
if ! run_pip packages "${lock_args[@]}" || ! run_pip raglane --no-build-isolation --editable .; then
    tail -n 15 "$log" >&2
    exit 1
fi
# Quicker now, on all cores, than by pip, which has one, or at the first start, when six processes would do it at once.
# Some packages hold files that do not compile and that nobody imports.
echo "  compiling the packages ..."
"$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages >/dev/null 2>&1 || true
printf '%s\n' "${installed[@]}" >"$stamp"
echo "Environment ready."
