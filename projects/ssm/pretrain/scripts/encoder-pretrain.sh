#!/usr/bin/env bash
# The same script, reachable from projects/ssm/pretrain as in the published tree.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../scripts/encoder-pretrain.sh" "$@"
