"""`samehost completion`: scripts that complete the command in a shell. They ask `samehost complete` what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost.cli.arguments import Parser

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """\
Print a script that completes commands, options, the addresses of services, and the methods and arguments of running
ones. Load it with

  bash   source <(samehost completion bash)
  zsh    source <(samehost completion zsh)
  fish   samehost completion fish | source"""

# A word that has one of the characters at which bash cuts words is put together again, and cut off what it completes.
_BASH = r"""
_samehost() {
    local line=${COMP_LINE:0:COMP_POINT} current prefix candidate
    current=${line##*[[:space:]]}
    prefix=${current%"${current##*[=:@]}"}
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$prefix"}")
    done < <(samehost complete --line "$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    fi
}
complete -o default -F _samehost samehost
"""

_ZSH = r"""
#compdef samehost
_samehost() {
    local -a candidates assignments
    local candidate
    for candidate in "${(@f)$(samehost complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $candidate == *= ]]; then
            assignments+=("$candidate")
        elif [[ -n $candidate ]]; then
            candidates+=("$candidate")
        fi
    done
    if (( ${#candidates} + ${#assignments} == 0 )); then
        _files
        return
    fi
    (( ${#candidates} )) && compadd -a candidates
    (( ${#assignments} )) && compadd -S '' -a assignments
}
compdef _samehost samehost
"""

_FISH = r"""
function __samehost_complete
    set -l words (commandline -opc) (commandline -ct)
    samehost complete -- $words[2..] 2>/dev/null
end
complete -c samehost -a '(__samehost_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def parser() -> argparse.ArgumentParser:
    """The arguments of `samehost completion`."""
    parser = Parser("completion", DESCRIPTION)
    parser.add_argument("shell", choices=SCRIPTS, metavar="SHELL", help=", ".join(SCRIPTS))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(SCRIPTS[arguments.shell].strip())
    return 0
