#!/bin/sh
# Makes a stand-in for the Dockerfile's base image where no registry can be reached: the same Debian release, the same
# Python, in the same places. The image is imported under the base image's own name, so that the Dockerfile builds as it
# stands and every step after its FROM is proven.
#
#     base-image.sh python:3.11-slim-bookworm
#
# Needs root, debootstrap, a route to a Debian mirror (MIRROR, by default Debian's own) and a Docker engine.
set -eu

image=$1
version=${image#*:} version=${version%%-*}  # 3.11
suite=${image##*-}                          # bookworm
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

# What the official slim image has beside Debian's base; python3-venv, because Debian splits off what the official one
# brings along.
packages=ca-certificates,netbase,tzdata,python3,python3-venv
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "${MIRROR:-http://deb.debian.org/debian}" >&2
if [ ! -x "$root/usr/bin/python$version" ]; then
    echo "$suite's python3 is not $version: there is no stand-in for $image" >&2
    exit 1
fi

# The official image's Python is in /usr/local, and answers to all three names.
for name in python python3 "python$version"; do
    ln -s "/usr/bin/python$version" "$root/usr/local/bin/$name"
done

# Authorities that this machine trusts (a company's proxy, say) must be trusted by what is built here.
for certificate in /usr/local/share/ca-certificates/*.crt; do
    if [ -e "$certificate" ]; then cp "$certificate" "$root/usr/local/share/ca-certificates/"; fi
done
chroot "$root" update-ca-certificates >&2

rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

tar -C "$root" -c . | docker import \
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' \
    --change 'CMD ["python3"]' \
    --message "stand-in for $image, from debootstrap" \
    - "$image"
