# shellcheck shell=bash
# HTTP requests in plain bash, without curl or wget.

source lib/step.sh

# request ADDRESS:PORT [PATH [STATUS]]: one request over a new connection; succeeds on STATUS (default 200).
request() {
  # shellcheck disable=SC2016 # expanded by the inner bash
  timeout 15 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$2" "$0" >&3 &&
    read -r _ status _ <&3 && [[ $status == "$3" ]]' \
    "${1%:*}" "${1##*:}" "${2:-/}" "${3:-200}" 2>/dev/null 8<&- 9>&-
}

# fetch ADDRESS:PORT PATH: prints the body of the response.
fetch() {
  # shellcheck disable=SC2016 # expanded by the inner bash
  timeout 15 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$2" "$0" >&3 &&
    cat <&3' "${1%:*}" "${1##*:}" "$2" 2>/dev/null 8<&- 9>&- | sed '1,/^\r*$/d'
}
