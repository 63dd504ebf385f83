# SPDX-License-Identifier: Apache-2.0
"""What bash, zsh and fish complete of kvctl and kvtop: what kvctl says of itself, and what a daemon has."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kvctl/completions"
BASH, ZSH, FISH = FOLDER / "kvctl", FOLDER / "_kvctl", FOLDER / "kvctl.fish"

SUMMARY_COLUMN = 34  # of `kvctl help`

# Per command, "" for none yet: each spelling of each option.
Grammar = dict[str, set[str]]
Complete = Callable[..., list[str]]


def surroundings(site: Site, **environment: str) -> dict[str, str]:
    """kvctl is on the PATH, nothing of the caller's own is at home, and sockets are in the site alone."""
    patient = (
        site.run / "bin/timeout"
    )  # on a busy machine kvctl may take longer than somebody at a keyboard waits
    if not patient.exists():
        patient.parent.mkdir()
        patient.write_text('#!/bin/sh\nshift\nexec "$@"\n')
        patient.chmod(0o755)
    own = {"PATH": f"{patient.parent}:{site.build / 'kvctl'}:/usr/bin:/bin", "HOME": str(site.run)}
    return site.environment(**own, RUNTIME_DIRECTORY=str(site.run), XDG_RUNTIME_DIR="/nowhere", **environment)


def run_shell(site: Site, command: list[str], **environment: str) -> str:
    """What it prints; it has nothing to complain of."""
    done = subprocess.run(
        command,
        env=surroundings(site, **environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def only_with(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(shell), reason=f"not on this machine: {shell}")


@pytest.fixture
def bash(site: Site) -> Complete:
    """bash("kvctl list ", ...): the replies at the end of the line, cut into words as readline does it."""

    def complete(line: str, **environment: str) -> list[str]:
        words = re.findall(r"[:=]+|[^\s:=]+", line)
        if line[-1].isspace():
            words.append("")
        script = (
            f"source {BASH}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
            '_kvctl "${COMP_WORDS[0]}"; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        command = ["bash", "--norc", "-o", "nounset", "-c", script]
        return sorted(run_shell(site, command, **environment).split())

    return complete


@pytest.fixture
def fish(site: Site) -> Complete:
    """fish("kvctl list "): the candidates, without what is told of them."""

    def complete(line: str, **environment: str) -> list[str]:
        script = f"source {FISH}; complete -C {shlex.quote(line)}"
        said = run_shell(site, ["fish", "--no-config", "-c", script], **environment)
        return sorted(candidate.split("\t")[0] for candidate in said.splitlines())

    return complete


# ---- As kvctl says of itself ----


@pytest.fixture
def truth(programs: Programs) -> Grammar:
    """From kvctl's help, and from its source for the spellings that the help leaves out."""
    source = (ROOT / "kvctl/options.c").read_text()
    spellings: dict[str, set[str]] = {}
    for flag, name, letter in re.findall(r'\{(OPTION_\w+), "(--\w+)", (?:0|\'(\w)\'), \w+\}', source):
        spellings.setdefault(flag, set()).update({name, f"-{letter}"} if letter else {name})
    assert len(spellings) > 8

    def options(help_text: str) -> set[str]:
        told = set(re.findall(r"^  (?:-\w, )?(--\w+)", help_text, re.M))
        return set().union(*(names for names in spellings.values() if names & told))

    overview = programs.kvctl("help").out
    grammar = {"": options(overview)}
    for command in summaries(overview):
        grammar[command] = options(programs.kvctl("help", command).out)
    return grammar


def summaries(overview: str) -> dict[str, str]:
    """By command; of what is the shell's alone there is nothing."""
    listed = overview.split("Commands:\n")[1].split("\n\n")[0]
    return {line.split()[0]: line[SUMMARY_COLUMN:] for line in listed.splitlines()}


def bash_grammar() -> Grammar:
    text = BASH.read_text()
    (commands,) = re.findall(r"local commands='(.*)'", text)
    grammar = {
        command.strip("'"): set(options.split())
        for command, options in re.findall(r"^    (''|[\w-]+)\) options='(.*)' ;;$", text, re.M)
    }
    assert set(commands.split()) == set(grammar) - {""}
    return grammar


def zsh_grammar() -> Grammar:
    text = ZSH.read_text()
    spellings = {
        name: set(re.findall(r"(?<![\w-])--?[a-z]+", re.sub(r"\(-.*?\)|\(\(.*?\)|\[.*?\]", "", specs)))
        for name, specs in re.findall(r"local -a (\w+)=\((.*)\)$", text, re.M)
    }
    return {
        command.strip("'"): set().union(*(spellings[name[1:]] for name in names.split()))
        for command, names in re.findall(r"^    (''|[\w-]+)\) options=\((.*)\) ;;$", text, re.M)
    }


def fish_grammar() -> Grammar:
    grammar: Grammar = {name: set() for name in ["", *fish_summaries()]}
    for words in fish_rules():
        pairs = list(itertools.pairwise(words))
        options = {f"-{name}" for kind, name in pairs if kind == "-s"}
        options |= {f"--{name}" for kind, name in pairs if kind == "-l"}
        condition = words[words.index("-n") + 1] if "-n" in words else ""
        for name in shlex.split(condition)[1:] if condition else grammar:
            grammar[name] |= options
    return grammar


def fish_rules() -> list[list[str]]:
    lines = FISH.read_text().replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("complete -c kvctl ")]


def fish_summaries() -> dict[str, str]:
    named = [rule for rule in fish_rules() if "-a" in rule and "-l" not in rule]
    told = {rule[rule.index("-a") + 1]: rule[rule.index("-d") + 1] for rule in named}
    return {name: summary for name, summary in told.items() if not name.startswith("(")}


@pytest.mark.parametrize("grammar", [bash_grammar, zsh_grammar, fish_grammar])
def test_commands_and_options_are_kvctls(truth: Grammar, grammar: Callable[[], Grammar]) -> None:
    assert grammar() == truth


def test_what_is_told_of_commands(programs: Programs) -> None:
    told = summaries(programs.kvctl("help").out)
    (listed,) = re.findall(r"local -a commands=\(\n(.*?)\n    \)", ZSH.read_text(), re.S)
    zsh = dict(entry.replace("\\:", ":").split(":", 1) for entry in shlex.split(listed))
    assert (zsh, fish_summaries()) == (told, told)


def test_instances_where_kvctl_takes_some(programs: Programs, daemon: Daemon, bash: Complete) -> None:
    """The commands whose usage has <ipc>."""
    programs.kvctl("limit", "llama", "1M", daemon=daemon)
    for command in summaries(programs.kvctl("help").out):
        usage = programs.kvctl("help", command).out.splitlines()[0]
        taken = bash(f"kvctl --socket {daemon.socket} {command} ") == ["llama"]
        assert taken == ("<ipc>" in usage), command
        again = bash(f"kvctl --socket {daemon.socket} {command} llama ") == ["llama"]
        assert again == ("<ipc>..." in usage), command


# ---- Bash ----


def test_bash(bash: Complete, truth: Grammar) -> None:
    commands = sorted(set(truth) - {""})
    assert bash("kvctl ") == bash("kvctl help ") == bash("kvctl --gpu 1 ") == commands
    assert bash("kvctl li") == ["limit", "limit-percent", "list"]
    assert bash("/usr/bin/kvtop -") == bash("kvctl kvtop -") == sorted(truth["kvtop"])
    assert bash("kvctl watch -n 2 --in") == ["--interval"]
    assert bash("kvctl watch -n ") == bash("kvctl watch --refresh=") == bash("kvctl nonsense --") == []
    assert bash("kvctl list -- -") == []
    for command, options in truth.items():
        assert bash(f"kvctl {command} --") == sorted(name for name in options if name.startswith("--"))


def test_bash_files(bash: Complete, site: Site) -> None:
    (site.run / "files").mkdir()
    (site.run / "files/one.sock").touch()
    assert bash(f"kvctl --socket {site.run}/fi") == [f"{site.run}/files"]
    assert bash(f"kvctl --socket={site.run}/files/") == [f"{site.run}/files/one.sock"]


@pytest.fixture
def several(programs: Programs) -> Daemon:
    """One with instances of several domains; without --socket nothing finds it."""
    daemon = programs.daemon(name="other")
    for name in ("uid:7/llama", "uid:8/llama", "tenant/qwen", "phi"):
        assert programs.kvctl("limit", name, "1M", daemon=daemon).rc == 0
    return daemon


def test_bash_instances(bash: Complete, several: Daemon) -> None:
    where = f"--socket {several.socket}"
    everything = ["phi", "qwen", "uid:7/llama", "uid:8/llama"]
    assert bash(f"kvctl {where} list ") == bash(f"kvtop --socket={several.socket} ") == everything
    assert bash("kvctl list ", KVCACHED_SOCKET=str(several.socket)) == everything
    assert bash("kvctl list ") == []
    assert bash(f"kvctl list {where} phi q") == ["qwen"]
    # What stands before the last colon is no part of the word that readline replaces.
    assert bash(f"kvctl {where} info uid:7") == ["7/llama"]
    assert bash(f"kvctl {where} info uid:") == ["7/llama", "8/llama"]


def test_bash_gpus(bash: Complete, programs: Programs, site: Site) -> None:
    programs.kvctl("limit", "a", "1M", daemon=programs.daemon())
    (site.run / "gpu11.sock.ctl").touch()
    (site.run / "gpu7.sock").touch()
    (site.run / "gpu-of-mine.sock.ctl").touch()
    assert bash("kvctl list --gpu ") == bash("kvtop --gpu=") == ["0", "11"]
    assert bash("kvctl list --gpu=0 ") == bash("kvctl --gpu 0 list ") == bash("kvtop --all ") == ["a"]
    assert bash("kvctl --gpu 11 list ") == []


def test_without_a_daemon(bash: Complete, site: Site) -> None:
    assert bash(f"kvctl --socket {site.run}/none.sock list ") == bash("kvctl --gpu ") == []


# ---- Zsh and fish ----


@only_with("zsh")
def test_zsh_takes_it(site: Site) -> None:
    run_shell(site, ["zsh", "-n", str(ZSH)])


@only_with("zsh")
def test_zsh(several: Daemon, site: Site) -> None:
    """At a terminal; Ctrl-P tells the line, of which zsh writes only what changes."""
    (site.run / "gpu11.sock.ctl").touch()
    (site.run / ".zshrc").write_text(
        f"fpath=({FOLDER} $fpath)\n"
        "autoload -Uz compinit; compinit -u -D\n"
        'tell() { print -r "<$BUFFER>" }; zle -N tell; bindkey ^P tell\n'
        "PS1='ready> '\n"
    )
    with Terminal(["zsh", "-d", "-i"], surroundings(site), columns=200) as terminal:
        terminal.expect("ready> ")
        eventually(terminal.takes_keys)
        for typed, rest in {
            f"kvctl --socket {several.socket} info q": "wen ",
            f"kvctl --socket={several.socket} list phi uid:7": "/llama ",
            f"kvtop --socket {several.socket} ph": "i ",
            f"kvctl info --socket {several.socket} phi q": "",
            f"kvctl --socket {site.run}/none.sock list q": "",
            f"kvctl --socket {site.run}/gpu11": ".sock.ctl ",
            "kvctl list --gpu 1": "1 ",
            "kvctl rel": "oad ",
            "kvctl delete --fo": "rce ",
            "kvctl list --fo": "",
        }.items():
            terminal.type(f"\x15{typed}\t\x10")
            terminal.expect(f"<{typed}{rest}>")


@only_with("fish")
def test_fish_takes_it(site: Site) -> None:
    run_shell(site, ["fish", "-n", str(FISH)])


@only_with("fish")
def test_fish(fish: Complete, truth: Grammar, several: Daemon, site: Site) -> None:
    assert fish("kvctl ") == sorted(set(truth) - {""})
    for command, options in truth.items():
        assert set(fish(f"kvctl {command} --")) == {name for name in options if name.startswith("--")}
    where = f"--socket {several.socket}"
    everything = ["phi", "qwen", "uid:7/llama", "uid:8/llama"]
    assert fish(f"kvctl {where} list ") == fish(f"kvtop {where} ") == everything
    assert fish(f"kvctl info {where} phi ") == fish(f"kvctl --socket {site.run}/none.sock list ") == []
    (site.run / "gpu11.sock.ctl").touch()
    assert fish("kvctl --gpu 1") == ["11"]
