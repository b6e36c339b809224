# Sourced by the commands in this folder: puts them in the repository root, in an environment that holds the project.
# Uses the active virtual environment, else makes .venv. Does nothing where the pinned versions are installed already.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    [[ -x .venv/bin/python ]] || "${PYTHON:-python3}" -m venv .venv
    VIRTUAL_ENV="$PWD/.venv"
    export VIRTUAL_ENV
fi
export PATH="$VIRTUAL_ENV/bin:$PATH"
# The default model's tensors are so small that threads would only wait for one another. Set it for a larger one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Where it is set, as in images of Python, each process would compile anew what pytest rewrites: tests, and all of vram.
unset PYTHONDONTWRITEBYTECODE

# What was installed last, by content: an edit of either file, or a checkout moved elsewhere, installs again.
stamp="$VIRTUAL_ENV/.himap-vram-setup"
want="$(cat pyproject.toml ci/constraints.txt | cksum) $PWD"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$want" ]]; then
    echo "Setting up $VIRTUAL_ENV (once; about a minute) ..." >&2
    # Python compiles what is imported: here, so that no two processes of tests do; pip would compile four times as much.
    install=(python -m pip install --quiet --no-compile --disable-pip-version-check)
    pinned() { # all that is pinned, which is all: half of it, without a search for versions
        "${install[@]}" --no-deps --requirement <(awk "/==/ && NR % 2 == $1" ci/constraints.txt) >&2
    }
    pinned 0 &
    pinned 1
    wait $!
    "${install[@]}" --constraint ci/constraints.txt --editable '.[dev]' >&2
    python -c 'import pytest, torch._dynamo, transformers.models.llava.modeling_llava' >&2
    printf '%s\n' "$want" > "$stamp"
fi
