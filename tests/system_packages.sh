#!/bin/sh
# Install what the tests use beyond Python (Debian and its kin, as root or with password-less sudo).
# Never fails: a test that lacks one of these skips and says what is missing.
# With the word "lab" also what a whole arm64 machine is built and emulated with.
missing=""
[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null 2>&1 || missing="$missing openssh-server"
command -v ssh >/dev/null 2>&1 || missing="$missing openssh-client"
command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing="$missing chromium"
# Login shells of devices.
for shell in tcsh zsh fish; do command -v $shell >/dev/null 2>&1 || missing="$missing $shell"; done
# Devices in namespaces, and an arm64 userland for them.
[ -x /usr/sbin/ip ] || [ -x /sbin/ip ] || command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
command -v mmdebstrap >/dev/null 2>&1 || missing="$missing mmdebstrap"
if [ "$(uname -m)" = x86_64 ]; then
    command -v qemu-aarch64-static >/dev/null 2>&1 || missing="$missing qemu-user-static"
fi
if [ "$1" = lab ]; then
    command -v qemu-system-aarch64 >/dev/null 2>&1 || missing="$missing qemu-system-arm"
    command -v dtc >/dev/null 2>&1 || missing="$missing device-tree-compiler"
    command -v make >/dev/null 2>&1 || missing="$missing make"
    command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || missing="$missing gcc-aarch64-linux-gnu"
    command -v xz >/dev/null 2>&1 || missing="$missing xz-utils"
fi
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, and there is no apt-get here:$missing; their tests will skip" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then root=""; elif sudo -n true 2>/dev/null; then root="sudo -n"; else
    echo "not installed, and this user may not install packages:$missing; their tests will skip" >&2
    exit 0
fi
echo "installing:$missing"
# The SSH server is only started by tests, on loopback: its package must not start one.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] && policy="" || printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null
[ -n "$policy" ] && $root chmod +x $policy
export DEBIAN_FRONTEND=noninteractive
$root apt-get update -q >/dev/null && $root apt-get install -y -q --no-install-recommends $missing >/dev/null ||
    echo "could not install:$missing; their tests will skip" >&2
[ -n "$policy" ] && $root rm -f $policy
exit 0
