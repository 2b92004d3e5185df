#!/bin/sh
# A browser for the tests of the web pages. On a CI machine (root on Debian) it installs Debian's package. On any other
# machine it installs nothing and prints what to do; those tests are then skipped.
set -u
package=chromium-headless-shell
for name in $package chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  install="apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $package"
  mkdir -p build/unreachable && rm -f build/unreachable/browser
  $install >/dev/null 2>&1 || { apt-get update -qq && $install >/dev/null; } || {
    touch build/unreachable/browser
    echo "no Chromium can be fetched: the tests of pages are skipped"
  }
else
  echo "no Chromium is here: the tests of pages are skipped (Debian: apt-get install $package)"
fi
