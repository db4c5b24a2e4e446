#!/usr/bin/env bash
# Entry of the images: the launch scripts and a few programs run as they are, anything else is for roots.
# A launch script that the folder of work does not have is that of the image.
set -euo pipefail

case "${1:-}" in
launch/*.sh)
    script="$1"
    shift
    if [[ ! -f "$script" ]]; then script="/home/roots/$script"; fi
    exec bash "$script" "$@"
    ;;
/* | bash | sh | python | python3 | deepspeed | torchrun | roots | roots-*) exec "$@" ;;
*) exec roots "$@" ;;
esac
