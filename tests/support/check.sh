# What the tests of whole commands share: `check NAME COMMAND…` tells how a command went and counts in $failures what failed.
failures=0
check() { # name, command...
    local name=$1
    shift
    if "$@" >out.txt 2>&1; then
        echo "ok   $name: $(tail -n 1 out.txt)"
    else
        echo "FAIL $name: $*"
        tail -n 5 out.txt
        failures=$((failures + 1))
    fi
}
