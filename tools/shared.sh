# shellcheck shell=bash
# Sourced by what makes virtual environments.

# alone FOLDER makes the folder and keeps its lock, waiting for whoever installs into it now.
#
# Processes that are started later keep the lock, too: an installation that was killed while its pip goes on still has it.
alone() {
    mkdir -p "$1"
    command -v flock >/dev/null || return 0
    exec 9<"$1"
    if ! flock --nonblock 9; then
        echo "another installation into $1 is going on; waiting for it to end" >&2
        flock 9
    fi
}

# pip's option: usually only what is imported is compiled, at its first import, since everything takes half a minute.
# Where Python keeps no bytecode, as in many containers, every process would compile some thousand files anew.
compile() { [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] && echo --compile || echo --no-compile; }
