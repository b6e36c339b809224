# Sourced by ci/memory and ci/gate, with `called_from`: set-up, then `vram gate` on the memory suite.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
root="$PWD"

run_suite() { # command, arguments of vram gate and of pytest
    local modes suite
    modes="$(python -c 'from llava.modes import MODES; print(*(f"--require={mode}" for mode in MODES))')"
    suite=("$root/tests/memory" -c "$root/pytest.ini" --rootdir "$root" -q)
    cd "$called_from" # the paths among the arguments are the caller's
    exec python -m vram gate --command "$1" --report "$root/reports/memory.json" $modes "${suite[@]}" "${@:2}"
}
