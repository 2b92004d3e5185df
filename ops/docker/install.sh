#!/bin/sh
# Installs into /opt/pagefleet, in the versions of constraints.txt: from wheels/ alone if everything is there, else from
# the index too.
#   install.sh REQUIREMENT ...
set -eu
install="pip --python /opt/pagefleet install --no-compile --find-links wheels --constraint constraints.txt"
if ! $install --no-index "$@"; then
    echo "not all of it is in wheels/: asking the index"
    $install "$@"
fi
