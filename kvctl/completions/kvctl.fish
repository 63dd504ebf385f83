# SPDX-License-Identifier: Apache-2.0
# Completion of kvctl and kvtop for fish.

# The words of the line before the cursor, with the command first ("" where it has none yet), and without options.
function __kvctl_words
    set -l words (commandline -opc)
    set -l rest
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case --socket --gpu -n -r --interval --refresh
                set -e words[1]
            case '-*'
            case '*'
                set -a rest $words[1]
        end
        set -q words[1]; and set -e words[1]
    end
    set -q rest[1]; or set rest ''
    printf '%s\n' $rest
end

# The options of the line that name a daemon.
function __kvctl_where
    set -l words (commandline -opc)
    while set -q words[1]
        switch $words[1]
            case '--socket=*' '--gpu=*' --all
                echo $words[1]
            case --socket --gpu
                printf '%s\n' $words[1] (string replace -r '^~/' "$HOME/" -- "$words[2]")
        end
        set -e words[1]
    end
end

# Whether the line's command is one of these; "" is none.
function __kvctl_is
    set -l words (__kvctl_words)
    contains -- $words[1] $argv
end

# Whether it is one of these, and the cursor at its first word.
function __kvctl_begins
    set -l words (__kvctl_words)
    test (count $words) -eq 1; and contains -- $words[1] $argv
end

# What the daemon has, by rows of its table; nothing where none answers soon.
function __kvctl_instances
    timeout 1 kvctl list (__kvctl_where) 2>/dev/null </dev/null |
        sed -n 's|^\([A-Za-z0-9._:/-]\{1,\}\)  *[0-9.]* [KMGTPE]*B .*|\1|p'
end

function __kvctl_gpus
    set -l paths (string split -f 1 : -- "$RUNTIME_DIRECTORY")/gpu*.sock.ctl \
        /run/kvcached/gpu*.sock.ctl $XDG_RUNTIME_DIR/kvcached/gpu*.sock.ctl
    string replace -rf '.*/gpu([0-9]+)\.sock\.ctl$' '$1' -- $paths | sort -nu
end

complete -c kvctl -f
complete -c kvtop -f -w 'kvctl kvtop'

complete -c kvctl -n '__kvctl_begins "" help' -a list -d 'show instances, their limits and what they use'
complete -c kvctl -n '__kvctl_begins "" help' -a limit -d 'set the limit of an instance in bytes'
complete -c kvctl -n '__kvctl_begins "" help' \
    -a limit-percent -d "set the limit of an instance as a percentage of the GPU's memory"
complete -c kvctl -n '__kvctl_begins "" help' -a watch -d 'show the list again and again'
complete -c kvctl -n '__kvctl_begins "" help' -a kvtop -d 'show bars of who holds what, live'
complete -c kvctl -n '__kvctl_begins "" help' -a delete -d 'forget an instance and its limit'
complete -c kvctl -n '__kvctl_begins "" help' -a info -d 'show all about the daemon, or about one instance'
complete -c kvctl -n '__kvctl_begins "" help' -a why -d 'explain what an instance uses, byte by byte'
complete -c kvctl -n '__kvctl_begins "" help' -a events -d 'show what has happened'
complete -c kvctl -n '__kvctl_begins "" help' -a reload -d 'have the daemon read its configuration again'
complete -c kvctl -n '__kvctl_begins "" help' -a version -d 'show the versions of kvctl and of the daemon'
complete -c kvctl -n '__kvctl_begins "" help' \
    -a shell -d 'read commands, one a line (also: no command at all)'
complete -c kvctl -n '__kvctl_begins "" help' -a help -d "show this text, or a command's"

complete -c kvctl -n '__kvctl_is list watch kvtop events' -a '(__kvctl_instances)' -d instance
complete -c kvctl -n '__kvctl_begins limit limit-percent delete info why' -a '(__kvctl_instances)' -d instance

complete -c kvctl -n '__kvctl_is "" list limit limit-percent watch kvtop delete info why events reload version shell' \
    -l socket -r -F -d "the daemon's socket"
complete -c kvctl -n '__kvctl_is "" list limit limit-percent watch kvtop delete info why events reload version shell' -l gpu -x \
    -a '(__kvctl_gpus)' -d 'the daemon of that GPU'
complete -c kvctl -n '__kvctl_is "" list watch kvtop info events reload version' \
    -l all -d 'every daemon that listens in the usual folders'
complete -c kvctl -n '__kvctl_is "" list limit limit-percent watch delete info why events reload version' \
    -l json -d 'print JSON'
complete -c kvctl -n '__kvctl_is watch kvtop' -s n -s r -l interval -l refresh -x -d 'seconds between looks'
complete -c kvctl -n '__kvctl_is events' -s f -l follow -d 'go on with what happens, until Ctrl-C'
complete -c kvctl -n '__kvctl_is delete' -l force -d 'freeze the instance and disconnect its processes'
complete -c kvctl -n '__kvctl_is ""' -l version -d 'the version of kvctl'
complete -c kvctl -s h -l help -d 'what it does'
