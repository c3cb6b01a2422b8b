#!/bin/sh
# Installs the Debian packages that the tests use where that is possible, and says what it does.
cd "$(dirname "$0")" || exit 1
if ! command -v dpkg-query >/dev/null; then
	echo "no Debian system: tests whose tools are missing skip by name"
	exit 0
fi
missing=
for package in $(cat debian-packages.txt); do
	dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
		missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "missing Debian packages, tests that use them skip by name; to have them: apt-get install$missing"
	exit 0
fi
echo "installing Debian packages for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive
# A package's service must not start on the machine that runs the tests.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
apt-get update -qq >/dev/null
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
	echo "apt-get could not install:$missing" >&2
	exit 1
}
