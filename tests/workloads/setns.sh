# Makes a pid namespace, binds it to FOLDER/pid, and enters it by that name from outside. The
# bind mount lives in the mount namespace that this script was given, and goes with it.
# Usage: unshare --mount --propagation private sh setns.sh FOLDER
set -e
mount --bind "$1" "$1"
mount --make-private "$1"
touch "$1/pid"
mkfifo "$1/end"
# The namespace's first process holds it open; its own shell expands what it is given.
# shellcheck disable=SC2016
unshare --pid="$1/pid" --fork /bin/sh -c 'read -r line < "$0"' "$1/end" &
until [ "$(stat --file-system --format %T "$1/pid")" = nsfs ]; do :; done
nsenter --pid="$1/pid" -- /bin/sh -c 'test $$ -gt 1 && test $$ -lt 10'
echo > "$1/end"
wait
