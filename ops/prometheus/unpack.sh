#!/bin/sh
# Unpacks Debian's Prometheus (promtool with it) into a folder: nothing is installed and no service starts.
# If that fails it prints the reason and succeeds: the tests that need Prometheus are skipped, in CI too.
set -u
folder=$1
unreachable=$(pwd)/build/unreachable
mkdir -p "$unreachable" "$folder" && rm -f "$unreachable/prometheus" && cd "$folder" || exit 1
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null &&
  { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; } &&
  dpkg-deb -x prometheus_*.deb .; then
  rm -f prometheus_*.deb
  echo "unpacked Prometheus into $folder"
else
  touch "$unreachable/prometheus"
  echo "no Prometheus can be had here: the tests of its rules and of the dashboard are skipped"
fi
