#!/usr/bin/env bash
# The pages of squint inspect --attention in a headless Chromium (attention_page.py): a student beside its teacher, a model alone with a
# difficult text.
#   attention_page.sh [FOLDER]    keeps screenshots there
set -u
here=$(cd "$(dirname "$0")" && pwd)
command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || { echo "skipped: no chromium or google-chrome is installed"; exit 77; }
pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
bash "$here/inspect_attention.sh" "$pages" || exit 1
bad=0
for page in both odd long; do
    holds=()
    [ $page = odd ] && holds=(--holds 'Café' --holds '☃' --holds '<b>"quoted"</b>' --holds '</script><!--' --holds 'FF' --holds '😀' --holds 'U+202E')
    [ $# -gt 0 ] && holds+=(--screens "$1/$page")
    python3 "$here/attention_page.py" "$pages/$page.html" "${holds[@]}" || { echo "FAILED: $page.html"; bad=1; }
done
exit $bad
