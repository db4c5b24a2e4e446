#!/usr/bin/env bash
# Entry of the images: the launch scripts and a few programs run as they are, anything else is for roots.
set -euo pipefail

case "${1:-}" in
launch/*.sh) exec bash "$@" ;;
bash | sh | python | python3 | deepspeed | roots) exec "$@" ;;
*) exec roots "$@" ;;
esac
